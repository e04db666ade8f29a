"""The heads of pre-training in transformers' own classes: an export has the recorded loss. Skipped
where transformers is not installed.
"""

from pathlib import Path

import numpy as np
import pytest

from adapt.export.exporting import export
from adapt.pretrained import hub
from tests.helpers import bert_like_files, tiny

REFERENCES = Path(__file__).parents[1] / "references"
WORDS = [*tiny.PLAIN, *tiny.GOOD, *tiny.BAD]
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
CLASSES = {
    "electra_discriminator": ("ElectraForPreTraining", {"labels": "labels"}),
    "bert_pretraining": (
        "BertForPreTraining",
        {"labels": "labels", "next": "next_sentence_label"},
    ),
    "albert_pretraining": (
        "AlbertForPreTraining",
        {"labels": "labels", "next": "sentence_order_label"},
    ),
    "vit_masked_image": ("ViTForMaskedImageModeling", {"masked": "bool_masked_pos"}),
    "deit_masked_image": ("DeiTForMaskedImageModeling", {"masked": "bool_masked_pos"}),
}
pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own warnings are theirs


def write_tokenizer(folder: Path, case: str) -> None:
    if case.startswith("albert"):
        bert_like_files.write_unigram(folder, WORDS[:10])
    elif case.startswith("electra"):
        bert_like_files.write_tokenizer(folder, case, WORDS)


@pytest.mark.parametrize("case", CLASSES)
def test_transformers_computes_the_recorded_loss_from_an_export(tmp_path, case):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tiny.checkpoint(tmp_path / "checkpoint", case)
    write_tokenizer(folder, case)
    out = tmp_path / "out"
    assert export(hub.load(folder), out) == "transformers"
    architecture, names = CLASSES[case]
    assert hub.read_json(out, "config.json")["architectures"] == [architecture]
    model_class = getattr(transformers, architecture)
    model, report = model_class.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report

    recorded = np.load(REFERENCES / "objectives.npz")
    given = np.load(REFERENCES / case / "outputs.npz")
    arguments = {name: torch.from_numpy(given[name]) for name in INPUTS if name in given}
    for ours, theirs in names.items():
        arguments[theirs] = torch.from_numpy(recorded[f"{case}/{ours}"])
    for name, tensor in arguments.items():
        if tensor.dtype == torch.int32:
            arguments[name] = tensor.long()
    with torch.no_grad():
        loss = model.eval()(**arguments).loss
    assert float(loss) == pytest.approx(float(recorded[f"{case}/loss"]), abs=1e-5)
