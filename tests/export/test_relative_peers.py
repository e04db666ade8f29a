"""transformers computes from an export of these families what it computed from the original; skipped
where it is not installed.
"""

from pathlib import Path

import numpy as np
import pytest

from adapt.export import layout
from adapt.export.folder import model_entries
from adapt.pretrained import families, hub

REFERENCES = Path(__file__).parents[1] / "references"
FAMILIES = ("t5", "mt5", "umt5", "mpnet", "albert", "deberta")
CASES = sorted(path.name for path in REFERENCES.iterdir() if path.name.startswith(FAMILIES))

pytestmark = pytest.mark.filterwarnings("default")  # the library's own warnings are its own


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_recorded_outputs_from_an_export(tmp_path, case):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run = hub.load(REFERENCES / case)
    family = families.get_family(run.config.family)
    kind = families.head_kind(run.head)
    architecture = family.base_class if kind == "features" else family.classes[kind]
    tensors = layout.to_tensors(run.config, run.params, run.head)
    if kind != "features":
        tensors = layout.with_prefix(run.config, tensors)
    tensors = family.extra_tensors(run.config, architecture, tensors) | tensors
    config = layout.write_config(run.config, run.head) | model_entries(run, architecture)
    layout.write_folder(tmp_path, config, tensors, {})

    model_class = getattr(transformers, architecture)
    model, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with np.load(REFERENCES / case / "outputs.npz") as file:
        recorded = dict(file)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: torch.tensor(recorded[name]).long() for name in names if name in recorded}
    real = recorded["attention_mask"].astype(bool)
    with torch.no_grad():
        states = model.base_model(**inputs).last_hidden_state.numpy()
        outputs = model(**inputs)
    np.testing.assert_allclose(states[real], recorded["last_hidden_state"][real], atol=1e-4)
    name = "logits" if "logits" in recorded else "pooler_output"
    if name in recorded:
        found = outputs.get(name, outputs.get("prediction_logits")).numpy()
        expected = recorded[name]
        if expected.ndim == 3:
            found, expected = found[real], expected[real]
        np.testing.assert_allclose(found, expected, atol=1e-4)
