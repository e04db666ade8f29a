"""pretrain: a checkpoint and plain text in, a checkpoint with its head out, which finetune discards."""

import json

import pytest

from adapt import tree
from adapt.cli import finetune, pretrain
from adapt.errors import DataError, StrategyError
from adapt.models import CausalLM, MaskedLM
from adapt.pretrained import hub
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

LEARN = {"steps": 30, "batch_size": 4, "validate_every": 15, "learning_rate": 0.01}


@pytest.fixture
def text(tmp_path):
    """Two sentences over and over, with blank lines between: easy to learn by heart."""
    path = tmp_path / "text.txt"
    path.write_text("the film was very good\n\n   \nso dull a plot and a cold end\n" * 20)
    return str(path)


CASES = [
    ("bert_mlm_untied_sharded", MaskedLM, True),
    ("bert_pretraining", MaskedLM, True),
    ("bert_bare_pooler", MaskedLM, False),
    ("gpt2_lm_tied", CausalLM, True),
    ("gpt2_bare", CausalLM, False),
]


@pytest.mark.parametrize(("case", "head", "there"), CASES)
def test_pre_training_learns_and_its_head_is_discarded(
    inputs, text, tmp_path, caplog, case, head, there
):
    blocks = None if case.endswith("sharded") else 1
    source = hub.load(inputs.checkpoint(case, blocks))
    result = pretrain.main(
        pretrain.Config(text=text, checkpoint=source.source, **LEARN, out=tmp_path / "pre")
    )
    assert result["loss"] < result["loss_before"] - 0.3
    assert json.loads((tmp_path / "pre/result.json").read_text()) == result
    assert ("has no language-model head: a fresh one" in caplog.text) == (not there)
    files = {
        "config.json",
        "metrics.jsonl",
        "history.png",
        "lineage.json",
        "model.json",
        "tokenizer.json",
    }
    assert {file.name for file in (tmp_path / "pre").iterdir()} == files | {
        "result.json",
        "checkpoints",
    }
    checks = [
        record
        for record in tiny.lines(tmp_path / "pre/metrics.jsonl")
        if "validation_loss" in record
    ]
    assert [record["step"] for record in checks] == [0, 15, 30]
    assert (
        checks[-1]["validation_loss"] == result["loss"]
        and checks[0]["validation_loss"] == result["loss_before"]
    )

    after = hub.load(tmp_path / "pre")
    assert isinstance(after.head, head)
    assert after.head.tied == (case != "bert_mlm_untied_sharded")
    if there:
        tree.check_like(after.params, source.params)
    assert tree.digest(after.params["encoder"]) != tree.digest(source.params["encoder"])

    # What a masked-LM loss never reaches is frozen, and goes through unchanged.
    unused = tree.select(
        after.params["head"], lambda path: path.startswith(("pooler", "next_sentence"))
    )
    assert result["parameters_frozen"] == tree.count(unused)
    assert result["parameters_trained"] == tree.count(after.params) - tree.count(unused)
    assert bool(tree.paths(unused)) == (case == "bert_pretraining")
    assert tree.digest(unused) == tree.digest(
        tree.select(source.params["head"], lambda path: path in tree.paths(unused))
    )

    # The head that was trained here is what fine-tuning discards, and the encoder is what it keeps.
    if case not in ("bert_pretraining", "gpt2_lm_tied"):
        return  # a head of one of these kinds
    flags = {
        "checkpoint": str(tmp_path / "pre"),
        "strategy": "frozen",
        "epochs": 1,
        "batch_size": 4,
    }
    adapted = finetune.main(finetune.Config(**flags, **inputs.texts, out=tmp_path / "run"))
    assert adapted["discarded"] == tree.discarded(after.params, "head")
    assert adapted["discarded"]["parameters"] > 0 or case.startswith("gpt2")
    assert tree.digest(hub.load(tmp_path / "run").params["encoder"]) == tree.digest(
        after.params["encoder"]
    )


def test_random_weights_start_from_nothing(inputs, text, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "steps": 1,
        "learning_rate": 0.0,
        "batch_size": 4,
    }
    pretrain.main(pretrain.Config(text=text, **flags, random_weights=True, out=tmp_path / "pre"))
    source, fresh = hub.load(inputs.checkpoint("bert_mlm_tied", 1)), hub.load(tmp_path / "pre")
    tree.check_like(fresh.params, source.params)
    assert tree.digest(fresh.params["encoder"]) != tree.digest(source.params["encoder"])
    assert json.loads((tmp_path / "pre/lineage.json").read_text())["random_weights"] is True


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"steps": 0}, "`steps` 0 must be at least 1"),
        ({"batch_size": 0}, "`batch_size` 0 must be at least 1"),
        ({"mask_rate": 1.0}, "between 0 and 1"),
        ({"max_length": 2}, "`max_length` 2 must be at least 3"),
        ({"learning_rate": -1.0}, "`learning_rate` -1.0 must be at least 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` nan must be at least 0"),
    ],
)
def test_flags_out_of_range(inputs, text, tmp_path, flags, words):
    with pytest.raises(StrategyError, match=words):
        pretrain.main(
            pretrain.Config(
                text=text,
                **{"checkpoint": inputs.checkpoint("bert_mlm_tied", 1)} | flags,
                out=tmp_path / "pre",
            )
        )
    assert not (tmp_path / "pre").exists()


def test_text_that_teaches_nothing(inputs, tmp_path):
    for number, words in enumerate(
        ("good\n", "\n \n", "Ж Щ\nЮ Я\nЦ Ч\n")
    ):  # one line; none; unknown words alone
        (tmp_path / "text.txt").write_text(words)
        with pytest.raises(DataError, match="at least 2"):
            pretrain.main(
                pretrain.Config(
                    text=str(tmp_path / "text.txt"),
                    checkpoint=inputs.checkpoint("bert_mlm_tied", 1),
                    out=tmp_path / str(number),
                )
            )
        assert not (tmp_path / str(number)).exists()


def test_images_are_no_text(inputs, text, tmp_path):
    with pytest.raises(StrategyError, match="no text encoder"):
        pretrain.main(
            pretrain.Config(
                text=text, checkpoint=inputs.checkpoint("vit_classifier"), out=tmp_path / "pre"
            )
        )
