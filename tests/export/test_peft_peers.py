"""PEFT computes from our folders what adapt computes, for every family; skipped where it is not installed.

By hand, PEERS being the folder where they are installed:

    PYTHONPATH=$PWD:$PEERS python -m pytest tests/export/test_peft_peers.py
"""

import json

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.export.exporting import export
from adapt.models import Span
from adapt.pretrained import families, hub
from tests.helpers.adapters import lora_run, with_other_biases
from tests.helpers.recorded import computed, unpacked
from tests.helpers.tiny import REFERENCES

pytestmark = pytest.mark.filterwarnings("default")  # the library's own warnings are its own


def cases() -> list[str]:
    """Recorded checkpoints of every family, of each kind of head one."""
    found = {}
    for folder in sorted(REFERENCES.iterdir()):
        if not (folder / "config.json").exists():
            continue
        says = json.loads((folder / "config.json").read_text("utf-8"))
        name = (says.get("architectures") or [""])[0]
        if says["model_type"] in families.FAMILIES and "WithTeacher" not in name:
            found.setdefault((says["model_type"], name), folder.name)
    return list(found.values())


VARIANTS = [
    ("bert_classifier", {"lora_magnitudes": True}),
    ("gpt2_bare", {"lora_magnitudes": True, "lora_stabilised": True}),
    ("modernbert_classifier", {"lora_stabilised": True}),
    ("gte_bare_no_types", {"lora_magnitudes": True}),
    ("deberta_v2_convolution", {"lora_magnitudes": True}),
]
WITH_BIASES = ("bert_classifier", "gpt2_bare", "roberta_spans", "deberta_v2_tokens")


@pytest.mark.parametrize(("case", "fields"), [*((case, {}) for case in cases()), *VARIANTS])
def test_peft_computes_from_an_export_what_adapt_computes(tmp_path, case, fields):
    check_peft_computes(tmp_path, case, lora_run(case, **fields))


@pytest.mark.parametrize("case", WITH_BIASES)
def test_peft_computes_with_the_biases_that_were_trained_beside(tmp_path, case):
    check_peft_computes(tmp_path, case, with_other_biases(lora_run(case, ".*/(query|value)")))


def check_peft_computes(tmp_path, case, run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    export(run, tmp_path / "adapter", "peft", base=REFERENCES / case)
    with np.load(REFERENCES / case / "outputs.npz") as file:
        recorded = dict(file)
    batch = unpacked(recorded)
    ours = jax.device_get(computed(run.model, run.params, batch))
    real = batch["segments"] < len(batch["segments"])

    config = transformers.AutoConfig.from_pretrained(tmp_path / "adapter")
    model_class = getattr(transformers, config.architectures[0])
    base = model_class.from_pretrained(REFERENCES / case, config=config)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    inputs = {name: torch.tensor(recorded[name]) for name in names if name in recorded}
    inputs = {name: t.long() if t.dtype == torch.int32 else t for name, t in inputs.items()}
    with torch.no_grad():
        outputs = model(**inputs)
    expected = np.asarray(ours["output"])
    pools = getattr(run.head, "pooling", "") in ("pooler", "map", "patch_norm")
    names = [
        "logits",
        "prediction_logits",
        "image_embeds",
        "text_embeds",
        *["pooler_output"] * pools,
    ]
    named = [name for name in names if outputs.get(name) is not None]
    if isinstance(run.head, Span):
        found = torch.stack([outputs["start_logits"], outputs["end_logits"]], 1).numpy()[0]
        found, expected = found[:, real[0]], expected[0][:, : len(real[0])][:, real[0]]
    elif named:
        found = outputs[named[0]].numpy()
        if found.shape[:2] == real.shape:
            found, expected = found[real], expected.reshape(found.shape)[real]
    elif "clip" in case:  # its last state is before the norm
        found = outputs["pooler_output"].numpy()
    else:
        states = outputs.get("last_hidden_state")
        if states is None:
            states = model.get_base_model().base_model(**inputs).last_hidden_state
        found, expected = states.detach().numpy()[real], ours["states"][-1][real]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    again = hub.load_silently(tmp_path / "adapter")
    assert families.head_kind(again.head) == families.head_kind(run.head)


@pytest.mark.parametrize(
    "entries",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["query"], "layers_to_transform": 1},
        {
            "target_modules": ["query", "dense"],
            "layers_to_transform": [0],
            "layers_pattern": "layer",
        },
        {"target_modules": ["dense"], "exclude_modules": r".*\.output\..*"},
        {"target_modules": r".*\.layer\.0\..*(key|value)"},
        {"target_modules": ["dense"], "modules_to_save": ["pooler"]},
    ],
)
def test_targets_are_those_of_peft(entries):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    from adapt.pretrained import peft_entries

    base = hub.load_silently(REFERENCES / "bert_classifier")
    rows = families.tensor_rows(base.config, tree.paths(base.params), base.head)
    modules = [row.name.removesuffix(".weight") for row in rows]
    config = peft.LoraConfig(**entries)
    ours = peft_entries.parse({"peft_type": "LORA", **entries}, "file")
    for module in modules:
        if entries["target_modules"] == "all-linear":
            assert ours.is_target(module)
        else:
            assert ours.is_target(module) == bool(check_target_module_exists(config, module))
