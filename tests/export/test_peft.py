"""Runs of LoRA as folders of PEFT, read back; what PEFT computes of them is in test_peft_peers.py."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adapt import tree
from adapt.errors import ExportError, OutputError
from adapt.export.exporting import export
from adapt.models import Classifier, peft
from adapt.pretrained import hub
from adapt.training import checkpoint
from tests.helpers.adapters import lora_run, with_other_biases
from tests.helpers.tiny import REFERENCES

# Families with and without a fused projection, with a head of each kind, with other names of modules.
CASES = (
    "bert_classifier",
    "roberta_spans",
    "gpt2_bare",
    "modernbert_tokens",
    "gte_classifier",
    "albert_classifier",
    "qwen3_lm_untied",
    "vit_classifier",
    "dinov2_gated_no_qkv_bias",
    "clip_text_bare",
)


def entries_of(folder: Path) -> dict:
    return json.loads((folder / hub.ADAPTER).read_text("utf-8"))


def same(loaded: hub.Pretrained, run: hub.Pretrained) -> None:
    params, config = peft.merge_lora(run.params, run.config)
    assert loaded.config == config and type(loaded.head) is type(run.head)
    tree.check_like(loaded.params["encoder"], params["encoder"])
    ours = tree.paths(params)
    for path, leaf in tree.paths(loaded.params).items():
        np.testing.assert_allclose(leaf, ours[path], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("targets", [".*", ".*/(query|value)"])
def test_what_is_written_is_what_is_read(tmp_path, case, targets):
    run = lora_run(case, targets)
    assert export(run, tmp_path / "out", "peft", base=REFERENCES / case) == "peft"
    same(hub.load_silently(tmp_path / "out"), run)


@pytest.mark.parametrize("case", ["gpt2_bare", "modernbert_tokens"])
def test_rslora_and_dora_are_read_as_they_were_written(tmp_path, case):
    run = lora_run(case, ".*/(query|value|up)", lora_stabilised=True, lora_magnitudes=True)
    export(run, tmp_path / "out", "peft", base=REFERENCES / case)
    entries = entries_of(tmp_path / "out")
    assert entries["use_rslora"] and entries["use_dora"]
    same(hub.load_silently(tmp_path / "out"), run)


@pytest.mark.parametrize("case", ["bert_classifier", "gpt2_bare"])
def test_biases_that_were_trained_beside_are_written_and_read(tmp_path, case):
    run = with_other_biases(lora_run(case, ".*/(query|value)"))
    export(run, tmp_path / "out", "peft", base=REFERENCES / case)
    assert entries_of(tmp_path / "out")["bias"] == "all"
    same(hub.load_silently(tmp_path / "out"), run)


def test_biases_of_a_family_whose_modules_have_other_names_are_refused(tmp_path):
    run = with_other_biases(lora_run("vit_classifier", ".*/(query|value)"))
    with pytest.raises(ExportError, match=r"bias of .* is another .* more than LoRA was trained"):
        export(run, tmp_path / "out", "peft", base=REFERENCES / "vit_classifier")


def test_a_convolution_is_written_as_torch_has_it(tmp_path):
    run = lora_run("deberta_v2_convolution", lora_magnitudes=True)
    export(run, tmp_path / "out", "peft", base=REFERENCES / "deberta_v2_convolution")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / hub.ADAPTER_WEIGHTS)
    assert tensors["base_model.model.encoder.conv.conv.lora_A.weight"].shape == (2, 16, 3)
    same(hub.load_silently(tmp_path / "out"), run)


def test_layers_side_by_side_have_a_rank_for_all_and_one_where_they_share_a(tmp_path):
    run = lora_run("gpt2_bare", ".*/(query|value)")
    export(run, tmp_path / "two", "peft", base=REFERENCES / "gpt2_bare")
    entries = entries_of(tmp_path / "two")
    assert (entries["r"], entries["lora_alpha"], entries["target_modules"]) == (4, 6, ["c_attn"])
    assert entries["fan_in_fan_out"] is True

    flat = tree.paths(run.params)
    for path in flat:
        if path.endswith("value/lora/a"):
            flat[path] = flat[path.replace("value", "query")]
    params = tree.unflatten(flat | dict.fromkeys(tree.empties(run.params)))
    run = dataclasses.replace(run, params=params)
    export(run, tmp_path / "one", "peft", base=REFERENCES / "gpt2_bare")
    assert entries_of(tmp_path / "one")["r"] == 2
    same(hub.load_silently(tmp_path / "one"), run)


def test_ranks_that_differ_are_said_by_module(tmp_path):
    run = lora_run("gpt2_bare")
    export(run, tmp_path / "out", "peft", base=REFERENCES / "gpt2_bare")
    entries = entries_of(tmp_path / "out")
    assert entries["r"] == 2
    assert entries["rank_pattern"] == {"h.0.attn.c_attn": 6, "h.1.attn.c_attn": 6}
    assert entries["alpha_pattern"] == {"h.0.attn.c_attn": 9, "h.1.attn.c_attn": 9}


def test_the_head_is_kept_and_the_task_and_the_base_are_said(tmp_path):
    base = REFERENCES / "bert_classifier"
    export(lora_run("bert_classifier", ".*/(query|value)"), tmp_path / "out", "peft", base=base)
    entries = entries_of(tmp_path / "out")
    assert entries["task_type"] == "SEQ_CLS"
    assert entries["modules_to_save"] == ["classifier", "pooler"]
    assert entries["target_modules"] == ["query", "value"]
    assert entries["base_model_name_or_path"] == str(base)
    tensors = safetensors.numpy.load_file(tmp_path / "out" / hub.ADAPTER_WEIGHTS)
    query = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    assert tensors[query].shape == (2, 24)
    assert "base_model.model.bert.pooler.dense.weight" in tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"]["0"] == "negative"
    assert hub.load_silently(tmp_path / "out").labels == ("negative", "neutral", "positive")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card and str(base) in card


def test_a_head_that_no_class_holds_is_left_out_and_said(tmp_path, caplog):
    run = lora_run("bert_bare_old_names")
    head = Classifier(3, "mean")
    kernel = np.ones((run.config.width, 3), np.float32)
    leaves = {"classifier": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    run = dataclasses.replace(run, head=head, params=run.params | {"head": leaves})
    export(run, tmp_path / "out", "peft", base=REFERENCES / "bert_bare_old_names")
    entries = entries_of(tmp_path / "out")
    assert entries["task_type"] == "FEATURE_EXTRACTION" and entries["modules_to_save"] is None
    assert "mean pooling) is not exported" in caplog.text
    assert "mean pooling) is not in this folder" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prefix_tokens": 2}, "prefix"),
        ({"lora_rank": 0}, "lora:8"),
    ],
)
def test_a_run_of_more_or_less_than_lora_is_refused(tmp_path, change, named):
    run = lora_run("bert_bare_pooler")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, **change))
    with pytest.raises(ExportError, match=named):
        export(run, tmp_path / "out", "peft", base=REFERENCES / "bert_bare_pooler")


def test_another_base_and_weights_that_were_trained_too_are_refused(tmp_path):
    run = lora_run("bert_bare_pooler")
    with pytest.raises(ExportError, match=r"encoder/block_00/.* is another"):
        export(run, tmp_path / "out", "peft", base=REFERENCES / "bert_mlm_relu")
    with pytest.raises(ExportError, match="`base`"):
        export(run, tmp_path / "out", "peft")
    with pytest.raises(ExportError, match="is not there"):
        export(run, tmp_path / "out", "peft", base=tmp_path / "gone")
    with pytest.raises(ExportError, match="`base`"):
        export(run, tmp_path / "out", "transformers", base=REFERENCES / "bert_bare_pooler")
    export(run, tmp_path / "out", "peft", base=REFERENCES / "bert_bare_pooler")
    with pytest.raises(ExportError, match="an adapter"):
        export(run, tmp_path / "again", "peft", base=tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        export(run, tmp_path / "out", "peft", base=REFERENCES / "bert_bare_pooler")


def test_an_adapter_is_not_written_as_one_again(tmp_path):
    folder = REFERENCES / "adapters" / "bert_dora"
    merged = hub.load(folder, base=REFERENCES / "bert_bare_pooler")
    with pytest.raises(ExportError, match="is an adapter of PEFT already"):
        export(merged, tmp_path / "out", "peft")


def test_a_runs_folder_says_with_which_checkpoint_it_began(tmp_path):
    run = lora_run("vit_classifier", ".*/query")
    (tmp_path / "run").mkdir()
    hub.save_model(tmp_path / "run", run)
    checkpoint.save_params(tmp_path / "run" / "checkpoints", run.params)
    settings = {"checkpoint": str(REFERENCES / "vit_classifier")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    export(hub.load(tmp_path / "run"), tmp_path / "out", "peft")
    same(hub.load_silently(tmp_path / "out"), run)
    assert entries_of(tmp_path / "out")["auto_mapping"] == {
        "base_model_class": "ViTForImageClassification",
        "parent_library": "transformers",
    }
