"""Folders of PEFT: what it recorded (tests/references/record_peft.py), every entry, and what is wrong with one."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from adapt import tree
from adapt.errors import CheckpointError
from adapt.models import Classifier, Encoder, Model
from adapt.pretrained import hub, peft_entries, peft_weights
from adapt.pretrained.importing import Imported
from tests.helpers.recorded import computed, unpacked
from tests.helpers.tiny import REFERENCES, ROOT

ADAPTERS = REFERENCES / "adapters"
CASES = sorted(path.name for path in ADAPTERS.iterdir() if path.is_dir())


def says(folder: Path) -> dict:
    return json.loads((folder / hub.ADAPTER).read_text("utf-8"))


def load(case: str) -> hub.Pretrained:
    folder = ADAPTERS / case
    return hub.load(folder, base=REFERENCES / says(folder)["base_model_name_or_path"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A recorded adapter whose base is where it says."""
    shutil.copytree(ADAPTERS / "bert_classifier", tmp_path / "adapter")
    shutil.copytree(REFERENCES / "bert_mlm_tied", tmp_path / "base")
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path / "adapter"


def change(folder: Path, **entries: object) -> None:
    (folder / hub.ADAPTER).write_text(json.dumps(says(folder) | entries))


def change_tensors(folder: Path, edit) -> None:
    file = folder / hub.ADAPTER_WEIGHTS
    safetensors.numpy.save_file(edit(safetensors.numpy.load_file(file)), file)


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_adapter_computes_what_peft_recorded(case):
    loaded = load(case)
    recorded = dict(np.load(ADAPTERS / case / "outputs.npz"))
    batch = unpacked(recorded)
    real = batch["segments"] < len(batch["segments"])
    found = jax.device_get(computed(loaded.model, loaded.params, batch))
    theirs = recorded["last_hidden_state"]
    np.testing.assert_allclose(found["states"][-1][real], theirs[real], atol=1e-5, rtol=0)
    theirs = recorded.get("logits", recorded.get("pooler_output"))
    if theirs is None:
        return
    ours = found["output"]
    if theirs.shape[:2] == real.shape:  # of tokens
        ours = ours.reshape(theirs.shape)[real]
        theirs = theirs[real]
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_the_head_is_that_of_the_adapter_and_what_the_base_had_is_said():
    loaded = load("bert_classifier")
    assert loaded.task == "classification" and loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert any("merged" in note and "is a new one" in note for note in loaded.notes)
    assert "cls.predictions.bias" in loaded.unread["head of the base"]
    assert load("roberta_tags").task == "tags"


def test_labels_tokenizer_and_vectors_are_those_of_files_beside_the_adapter(folder):
    names = {"0": "bad", "1": "fair", "2": "good"}
    (folder / "config.json").write_text(json.dumps({"id2label": names}))
    for place, word in ((folder, "film"), (folder.parent / "base", "other")):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", word]
        (place / "vocab.txt").write_text("\n".join(vocabulary))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    modules.append(
        modules[0] | {"idx": 1, "path": "1_P", "type": "sentence_transformers.models.Pooling"}
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_P").mkdir()
    (folder / "1_P" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    loaded = hub.load(folder)
    assert loaded.labels == ("bad", "fair", "good")
    assert loaded.tokenizer and loaded.tokenizer.backend.token_to_id("film") == 5
    assert loaded.embedding.pooling == "max"


def test_ia3_scales_the_bias_of_a_module_with_one_output():
    """As of every module but a feed-forward one, whose inputs it scales."""
    loaded = hub.load(REFERENCES / "bert_bare_pooler")
    model = Model(Encoder(loaded.config), Classifier(1))
    params = {"encoder": loaded.params["encoder"], "head": model.init_head(jax.random.key(0))}
    base = peft_weights.Base(loaded.config, Imported(model.head, params, {}, ()), "base")
    base.replace("classifier.bias", np.ones(1, np.float32), "file")
    before = base.tensor("classifier.weight")
    tensors = {"ia3_l": np.full((1, 1), 3.0, np.float32)}
    adapter = peft_weights.Adapter(peft_entries.Entries("IA3"), {}, "file", "base")
    peft_weights.add_to_module(base, "classifier", "classifier", tensors, {}, adapter)
    np.testing.assert_array_equal(base.tensor("classifier.bias"), [3.0])
    np.testing.assert_array_equal(base.tensor("classifier.weight"), 3 * before)


def test_a_row_of_zeros_stays_one_by_dora():
    entries = peft_entries.Entries("LORA", r=1, use_dora=True)
    weight = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    tensors = {
        "lora_A": np.ones((1, 2), np.float32),
        "lora_B": np.zeros((2, 1), np.float32),
        "lora_magnitude_vector": np.array([10.0, 0.0], np.float32),
    }
    merged = peft_weights.with_low_rank(weight, tensors, entries, "dense", "dense")
    np.testing.assert_allclose(merged, 2 * weight)


# Entries


def test_the_page_has_every_entry_and_no_other():
    page = (ROOT / "docs" / "peft.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M))
    read = {field.name for field in dataclasses.fields(peft_entries.Entries)}
    assert rows.keys() == read | set(peft_entries.NO_EFFECT) | set(peft_entries.REFUSED)
    for name in peft_entries.NO_EFFECT:
        assert rows[name].startswith("no effect")
    for name in peft_entries.REFUSED:
        assert rows[name] == "refused"
    for case in CASES:
        assert not says(ADAPTERS / case).keys() - rows.keys() - {"d_initial"}


@pytest.mark.parametrize("name", [*peft_entries.REFUSED, "an_entry_of_tomorrow"])
def test_an_entry_that_is_not_obeyed_is_refused_by_name_where_it_is_set(name):
    content = {"peft_type": "LORA", "target_modules": ["query"]}
    for unset in (None, False, [], {}):
        peft_entries.parse(content | {name: unset}, "file")
    with pytest.raises(CheckpointError, match=f"^{name} "):
        peft_entries.parse(content | {name: [1]}, "file")


def test_an_entry_without_effect_changes_nothing(folder):
    before = tree.digest(hub.load(folder).params)
    change(folder, **dict.fromkeys(peft_entries.NO_EFFECT, 7))
    assert tree.digest(hub.load(folder).params) == before


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("peft_type", "OFT"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("r", "8"),
        ("r", 0),
        ("rank_pattern", {"query": 0}),
        ("lora_alpha", [1]),
        ("target_modules", "(query"),
        ("alpha_pattern", {"(": 2}),
        ("modules_to_save", "classifier"),
        ("init_lora_weights", "pissa_niter_4"),
        ("save_projection", False),
        ("revision", "v2"),
        ("base_model_name_or_path", None),
    ],
)
def test_a_value_that_is_not_read_is_refused_with_its_entry(folder, entry, value):
    if entry == "revision":
        change(folder, base_model_name_or_path="some/model")
    change(folder, **{entry: value})
    message = refusal(folder)
    assert entry in message
    assert str(folder) in message


def test_targets_are_chosen_as_peft_chooses_them():
    """Its own function says the same: tests/export/test_peft_peers.py."""
    module = "bert.encoder.layer.1.attention.self.query"

    def is_target(**entries) -> bool:
        return peft_entries.parse({"peft_type": "LORA", **entries}, "file").is_target(module)

    assert is_target(target_modules="all-linear")
    assert is_target(target_modules=["query"]) and is_target(target_modules=[module])
    assert not is_target(target_modules=["uery"]) and not is_target(target_modules="query")
    assert is_target(target_modules=r".*\.(query|value)")
    assert not is_target(target_modules=["query"], exclude_modules=["self.query"])
    assert not is_target(target_modules=["query"], modules_to_save=["encoder"])
    assert is_target(target_modules=["query"], layers_to_transform=1)
    assert not is_target(target_modules=["query"], layers_to_transform=[0, 2])
    assert not is_target(target_modules=["query"], layers_to_transform=[1], layers_pattern="blocks")
    assert is_target(target_modules=[module], layers_to_transform=[0])


def test_all_biases_of_modules_that_were_trained_as_a_whole_are_read(folder):
    """With bias "all" PEFT writes those modules' biases under two names more."""
    before = hub.load(folder)

    def with_all_biases(tensors):
        more = dict(tensors)
        for module in ("classifier", "bert.pooler"):
            for name, tensor in tensors.items():
                rest = name.removeprefix(f"base_model.model.{module}.")
                if rest != name and rest.endswith("bias"):
                    inside = f"base_model.model.{module}."
                    more[f"{inside}modules_to_save.{rest}"] = tensor
                    more[f"{inside}original_module.{rest}"] = np.zeros_like(tensor)
        assert len(more) == len(tensors) + 4
        return more

    change_tensors(folder, with_all_biases)
    change(folder, bias="all")
    after = hub.load(folder)
    assert after.labels == before.labels and after.task == "classification"
    assert tree.digest(after.params) == tree.digest(before.params)


def test_a_classifier_that_does_not_result_is_refused(folder):
    def without_pooler(tensors):
        return {name: tensor for name, tensor in tensors.items() if "pooler" not in name}

    change_tensors(folder, without_pooler)
    message = refusal(folder)
    assert "task_type is SEQ_CLS" in message and "classifier.weight" in message
    change(folder, task_type="FEATURE_EXTRACTION")
    assert hub.load(folder).labels == ()


# What is wrong with a folder


def test_an_adapter_of_another_base_is_refused_with_the_layer(folder):
    assert "base" in refusal(folder, base=REFERENCES / "gpt2_bare")
    message = refusal(folder, base=REFERENCES / "bert_bare_pooler")
    assert "another base" in message and "query" in message

    def deeper(tensors):
        return {name.replace("layer.1.", "layer.7."): tensor for name, tensor in tensors.items()}

    change_tensors(folder, deeper)
    message = refusal(folder)
    assert "layer.7" in message and "no such layer" in message


def test_a_target_that_is_nowhere_and_a_layer_that_is_no_target_are_refused(folder):
    change(folder, target_modules=["query", "value", "key"])
    assert "self.key, which target_modules" in refusal(folder)
    change(folder, target_modules=["query"])
    assert "self.value, which target_modules" in refusal(folder)
    change(folder, target_modules=["nowhere"])
    assert "does not name" in refusal(folder)


def test_damaged_files_are_refused(folder):
    file = folder / hub.ADAPTER_WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    assert "truncated or corrupt" in refusal(folder)
    file.write_bytes(whole)

    def without_b(tensors):
        return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}

    change_tensors(folder, without_b)
    assert "no lora_B" in refusal(folder)
    file.write_bytes(whole)
    change_tensors(
        folder, lambda tensors: tensors | {"base_model.model.x.lora_C.weight": np.ones(1)}
    )
    assert "lora_C" in refusal(folder)
    file.unlink()
    assert hub.ADAPTER_WEIGHTS in refusal(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin is a pickle" in refusal(folder)
    (folder / hub.ADAPTER).write_text("{")
    assert "is not JSON" in refusal(folder)


def test_a_rank_that_the_file_does_not_have_is_refused(folder):
    change(folder, r=4)
    assert "lora_A" in refusal(folder)


def test_a_base_that_is_missing_or_wrong_is_refused_with_the_mend(folder):
    base = folder.parent / "base"
    mend = f"write its place into base_model_name_or_path of {folder / hub.ADAPTER}"
    change(folder, base_model_name_or_path=str(folder.parent / "gone"))
    assert mend in refusal(folder)
    (base / "model.json").write_text("{}")
    assert mend in refusal(folder, base=base)
    change(folder, base_model_name_or_path=str(folder))  # itself
    assert "config.json" in refusal(folder)
    with pytest.raises(CheckpointError, match="no adapter"):
        hub.load(REFERENCES / "bert_mlm_tied", base=REFERENCES / "bert_mlm_tied")


def test_a_decoder_that_is_the_embedding_stays_as_it_was_where_that_is_changed(tmp_path):
    shutil.copytree(ADAPTERS / "gpt2_embedding", tmp_path / "adapter")
    entries = {"auto_mapping": None, "target_modules": ["wte"], "r": 2, "rank_pattern": {}}
    change(tmp_path / "adapter", **entries)
    rng = np.random.default_rng(0)
    name = "base_model.model.transformer.wte.lora_embedding_"
    tensors = {f"{name}A": rng.normal(size=(2, 100)), f"{name}B": rng.normal(size=(24, 2))}
    safetensors.numpy.save_file(tensors, tmp_path / "adapter" / hub.ADAPTER_WEIGHTS)
    base = tree.paths(hub.load(REFERENCES / "gpt2_lm_tied").params)
    table = np.asarray(base["encoder/embedding/token"])
    loaded = hub.load(tmp_path / "adapter", base=REFERENCES / "gpt2_lm_tied")
    found = tree.paths(loaded.params)
    assert loaded.head.tied is False
    np.testing.assert_array_equal(found["head/decoder/kernel"], table.T)
    assert not np.allclose(found["encoder/embedding/token"], table, atol=0.1)


def test_what_is_added_to_a_decoder_that_is_the_embedding_leaves_that_as_it_was(tmp_path):
    shutil.copytree(ADAPTERS / "gpt2_embedding", tmp_path / "adapter")
    targets = ["c_attn", "lm_head"]
    entries = {"auto_mapping": None, "target_modules": targets, "r": 2, "rank_pattern": {}}
    change(tmp_path / "adapter", **entries, task_type="CAUSAL_LM", lora_alpha=4, use_rslora=False)
    rng = np.random.default_rng(0)
    modules = {"transformer.h.0.attn.c_attn": (24, 72), "transformer.h.1.attn.c_attn": (24, 72)}
    modules["lm_head"] = (24, 100)
    tensors = {}
    for module, (inputs, outputs) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(2, inputs))
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(outputs, 2))
    safetensors.numpy.save_file(tensors, tmp_path / "adapter" / hub.ADAPTER_WEIGHTS)
    base = tree.paths(hub.load(REFERENCES / "gpt2_lm_tied").params)
    table = np.asarray(base["encoder/embedding/token"])
    loaded = hub.load(tmp_path / "adapter", base=REFERENCES / "gpt2_lm_tied")
    found = tree.paths(loaded.params)
    assert loaded.head.tied is False and not loaded.unread
    np.testing.assert_array_equal(found["encoder/embedding/token"], table)
    b, a = (tensors[f"base_model.model.lm_head.lora_{name}.weight"] for name in "BA")
    np.testing.assert_allclose(found["head/decoder/kernel"], (table + 2 * b @ a).T, atol=1e-5)
