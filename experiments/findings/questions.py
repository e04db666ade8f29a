"""What findings on few labelled questions share: their setting, and the names of its fits."""

from experiments.findings.cells import Setting

# The types of questions, six classes: short texts, of which a few labels say something.
QUESTIONS = Setting(
    data="trec",
    budgets=(32, 128),
    options={"max_length": 64, "patience": 0},
    min_steps=60,
    test_rows=400,
    rates=(1.0,),
)


def name_of(checkpoint: str, strategy: str, setting: Setting) -> str:
    """The name of the fits of a setting, which says in what settings of questions differ."""
    budgets = "-".join(str(budget) for budget in setting.budgets)
    plain = strategy.replace(":", "")
    return f"{checkpoint}-{setting.data}-{budgets}-{setting.min_steps}-steps-{plain}"
