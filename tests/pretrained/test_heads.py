"""A head never stands in the way of an encoder: it is used, or discarded and named."""

import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy

import adapt
from adapt import tree
from adapt.errors import CheckpointError
from adapt.models import CausalLM, Classifier, MaskedLM, MaskedPixels, Span, Tagger
from adapt.pretrained import hub
from tests.helpers import tiny

random = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    return random.normal(0, 1, shape).astype(np.float32)


def saved(folder, case: str, extra=None, rename=None, without: str = "", **config):
    """A recorded encoder with other tensors beside it, as ``{name: array}``; its folder.

    ``rename`` changes each name of the file, ``without`` is how names begin that are left out.
    """
    tiny.checkpoint(folder, case, **config)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    if without:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(without)}
    tensors |= extra or {}
    if rename:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, file)
    return folder


def shapes(loaded: hub.Pretrained) -> dict[str, dict[str, tuple[int, ...]]]:
    return {what: dict(tensors) for what, tensors in loaded.unread.items()}


def encoder_digest(case: str) -> str:
    return tree.digest(hub.load(tiny.REFERENCES / case).params["encoder"])


# Heads that are known


def last_states(case: str, name: str = "last_hidden_state") -> np.ndarray:
    return np.load(tiny.REFERENCES / case / "outputs.npz")[name]


def batch_of(case: str) -> dict[str, np.ndarray]:
    """The recorded inputs, one example a row."""
    recorded = np.load(tiny.REFERENCES / case / "outputs.npz")
    ids = recorded["input_ids"].astype(np.int32)
    rows, tokens = ids.shape
    lengths = recorded["attention_mask"].sum(1).astype(np.int32)
    is_real = np.arange(tokens) < lengths[:, None]
    batch = {
        "tokens": ids,
        "positions": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1)),
        "segments": np.where(is_real, np.arange(rows)[:, None], rows).astype(np.int32),
        "first": np.arange(rows, dtype=np.int32) * tokens,
        "length": lengths,
    }
    if "token_type_ids" in recorded:
        batch["types"] = recorded["token_type_ids"].astype(np.int32)
    return batch


def outputs(loaded: hub.Pretrained, case: str) -> np.ndarray:
    return np.asarray(jax.jit(loaded.model.apply)(loaded.params, batch_of(case)))


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare"])
def test_a_tagger_is_a_tagger(tmp_path, case):
    """transformers up to 3 saved a pooler beside it, which it does not read."""
    width = 36 if case.startswith("bert") else 24
    extra = {"classifier.weight": weights(3, width), "classifier.bias": weights(3)}
    names = {"0": "O", "1": "B-PER", "2": "I-PER"}
    model = (
        "BertForTokenClassification" if case.startswith("bert") else "GPT2ForTokenClassification"
    )
    folder = saved(tmp_path / "a", case, extra, architectures=[model], id2label=names)
    loaded = hub.load(folder)
    assert isinstance(loaded.head, Tagger)
    assert (loaded.task, loaded.labels) == ("tags", ("O", "B-PER", "I-PER"))
    assert set(shapes(loaded)) == ({"pooler"} if case.startswith("bert") else set())
    expected = last_states(case) @ extra["classifier.weight"].T + extra["classifier.bias"]
    is_real = batch_of(case)["segments"].reshape(-1) < 3
    ours = outputs(loaded, case)[is_real]
    np.testing.assert_allclose(ours, expected.reshape(-1, 3)[is_real], atol=1e-4)


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare"])
def test_answers_to_questions_are_spans(tmp_path, case):
    width = 36 if case.startswith("bert") else 24
    extra = {"qa_outputs.weight": weights(2, width), "qa_outputs.bias": weights(2)}
    loaded = hub.load(saved(tmp_path / "a", case, extra))
    assert isinstance(loaded.head, Span)
    assert loaded.task == "span"
    ours = outputs(loaded, case)
    theirs = last_states(case) @ extra["qa_outputs.weight"].T + extra["qa_outputs.bias"]
    for row, length in enumerate(batch_of(case)["length"]):
        expected = jax.nn.log_softmax(theirs[row, :length], axis=0)
        found = jax.nn.log_softmax(ours[row, :, :length], axis=1)
        np.testing.assert_allclose(found, expected.T, atol=1e-4)


def test_next_sentence_alone_is_a_classifier_of_pairs(tmp_path):
    case = "bert_bare_pooler"
    extra = {"cls.seq_relationship.weight": weights(2, 36), "cls.seq_relationship.bias": weights(2)}
    loaded = hub.load(saved(tmp_path / "a", case, extra))
    assert loaded.head == Classifier(2, "pooler")
    assert not loaded.unread
    expected = last_states(case, "pooler_output") @ extra["cls.seq_relationship.weight"].T
    expected += extra["cls.seq_relationship.bias"]
    np.testing.assert_allclose(outputs(loaded, case), expected, atol=1e-4)


def test_a_choice_is_a_choice(tmp_path):
    extra = {"classifier.weight": weights(1, 36), "classifier.bias": weights(1)}
    changes = {"architectures": ["BertForMultipleChoice"], "id2label": {"0": "LABEL_0"}}
    loaded = hub.load(saved(tmp_path / "a", "bert_bare_pooler", extra, **changes))
    assert loaded.head == Classifier(1, "pooler")
    assert loaded.task == "choice"


def test_a_masked_lm_keeps_the_pooler_that_was_saved_beside_it(tmp_path):
    folder = saved(tmp_path / "a", "bert_pretraining", without="cls.seq_relationship.")
    loaded = hub.load(folder)
    assert isinstance(loaded.head, MaskedLM)
    assert loaded.head.pooler and not loaded.head.next_sentence
    whole = hub.load(tiny.REFERENCES / "bert_pretraining")
    head = {name: part for name, part in whole.params["head"].items() if name != "next_sentence"}
    assert tree.digest(loaded.params["head"]) == tree.digest(head)
    case = "bert_pretraining"
    np.testing.assert_array_equal(outputs(loaded, case), outputs(whole, case))


def test_a_next_sentence_head_without_its_pooler_is_named(tmp_path):
    folder = saved(tmp_path / "a", "bert_pretraining", without="bert.pooler.")
    loaded = hub.load(folder)
    assert isinstance(loaded.head, MaskedLM)
    assert list(shapes(loaded)) == ["next-sentence head"]


def test_double_heads_are_a_language_model_and_a_choice_that_is_named(tmp_path):
    extra = {"multiple_choice_head.summary.weight": weights(1, 24)}
    changes = {"architectures": ["GPT2DoubleHeadsModel"]}
    loaded = hub.load(saved(tmp_path / "a", "gpt2_lm_tied", extra, **changes))
    assert isinstance(loaded.head, CausalLM)
    assert loaded.head.tied
    named = {"multiple_choice_head.summary.weight": (1, 24)}
    assert shapes(loaded) == {"multiple-choice head": named}


def masked_image_tensors(pixels: int) -> dict[str, np.ndarray]:
    decoder = {"decoder.0.weight": weights(pixels, 24, 1, 1), "decoder.0.bias": weights(pixels)}
    return decoder | {"embeddings.mask_token": weights(1, 1, 24)}


def test_masked_image_pre_training_is_a_head_and_a_pooler_beside_it_named(tmp_path):
    loaded = hub.load(saved(tmp_path / "a", "vit_bare_pooler", masked_image_tensors(192)))
    assert isinstance(loaded.head, MaskedPixels)
    assert list(shapes(loaded)) == ["pooler"]


def test_masked_image_pre_training_of_other_pixels_is_named(tmp_path):
    extra = masked_image_tensors(100)
    loaded = hub.load(saved(tmp_path / "a", "vit_bare_pooler", extra))
    named = {name: tensor.shape for name, tensor in extra.items()}
    assert shapes(loaded) == {"masked-image head": named}
    assert loaded.head.pooling == "pooler"
    assert tree.digest(loaded.params["encoder"]) == encoder_digest("vit_bare_pooler")


# Heads that are not


@pytest.mark.parametrize(
    "case", ["bert_bare_pooler", "bert_mlm_tied", "gpt2_bare", "vit_bare_pooler"]
)
def test_a_head_that_nobody_knows_is_discarded_and_named(tmp_path, case, caplog):
    extra = {"projection.0.weight": weights(5, 7), "log_scale": weights()}
    with caplog.at_level(logging.WARNING, "adapt"):
        loaded = hub.load(saved(tmp_path / "a", case, extra))
    assert shapes(loaded) == {"unknown head": {"log_scale": (), "projection.0.weight": (5, 7)}}
    (line,) = [record.getMessage() for record in caplog.records]
    assert "unknown head discarded: log_scale [], projection.0.weight [5, 7]" in line
    assert tree.digest(loaded.params["encoder"]) == encoder_digest(case)
    assert type(loaded.head) is type(hub.load(tiny.REFERENCES / case).head)


def test_a_classifier_with_something_unknown_on_it_is_unknown_itself(tmp_path):
    """Under a CRF the classes are not those of the greatest logits."""
    extra = {"classifier.weight": weights(3, 36), "classifier.bias": weights(3)}
    extra["crf.transitions"] = weights(3, 3)
    changes = {"architectures": ["BertForTokenClassification"]}
    loaded = hub.load(saved(tmp_path / "a", "bert_bare_pooler", extra, **changes))
    assert loaded.head == Classifier(0, "pooler")
    assert loaded.task == ""
    assert set(shapes(loaded)["unknown head"]) == set(extra)


def test_a_classifier_of_nobody_knows_what_is_unknown(tmp_path):
    """Without a pooler and without a class it may read every token, or the first alone."""
    extra = {"classifier.weight": weights(3, 24), "classifier.bias": weights(3)}
    loaded = hub.load(saved(tmp_path / "a", "bert_bare_old_names", extra, architectures=None))
    assert loaded.head == Classifier(0, "cls")
    assert set(shapes(loaded)["unknown head"]) == set(extra)


@pytest.mark.parametrize(
    ("case", "name", "shape", "rest"),
    [
        ("bert_classifier", "classifier.bias", (7,), Classifier(0, "pooler")),
        ("bert_mlm_tied", "cls.predictions.transform.dense.weight", (7, 7), Classifier(0, "cls")),
        ("gpt2_lm_untied", "lm_head.weight", (7, 24), None),
        ("vit_classifier", "classifier.weight", (5, 7), Classifier(0, "cls")),
    ],
)
def test_a_head_that_does_not_fit_is_discarded_whole(tmp_path, case, name, shape, rest):
    loaded = hub.load(saved(tmp_path / "a", case, {name: weights(*shape)}))
    assert shapes(loaded)["unknown head"][name] == shape
    assert rest is None or loaded.head == rest
    assert tree.digest(loaded.params["encoder"]) == encoder_digest(case)


def test_half_a_head_is_discarded_whole(tmp_path):
    folder = saved(tmp_path / "a", "bert_mlm_tied", without="cls.predictions.transform.LayerNorm.")
    loaded = hub.load(folder)
    assert loaded.head == Classifier(0, "cls")
    assert all(name.startswith("cls.predictions.") for name in shapes(loaded)["unknown head"])


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare", "vit_bare_pooler"])
def test_a_missing_tensor_of_the_encoder_is_an_error_whatever_head_there_is(tmp_path, case):
    first = {"bert": "embeddings.position_embeddings", "gpt2": "wpe", "vit": "layernorm"}
    start = first[case.split("_")[0]]
    folder = saved(tmp_path / "a", case, {"projection.weight": weights(5, 7)}, without=start)
    with pytest.raises(CheckpointError, match=f"- {start}.weight"):
        hub.load(folder)


# Prefixes


@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("model.", ("model.",)),
        ("0.auto_model.", ("0.auto_model.",)),
        ("_orig_mod.module.student.", ("module.", "_orig_mod.", "student.")),
        ("encoder.", ("encoder.",)),
    ],
)
@pytest.mark.parametrize("case", ["bert_pretraining", "gpt2_lm_untied", "vit_classifier"])
def test_prefixes_of_all_kinds_are_left_out_and_said(tmp_path, case, prefix, removed, caplog):
    with caplog.at_level(logging.WARNING, "adapt"):
        loaded = hub.load(saved(tmp_path / "a", case, rename=lambda name: prefix + name))
    plain = hub.load(tiny.REFERENCES / case)
    assert tree.digest(loaded.params) == tree.digest(plain.params)
    assert loaded.head == plain.head
    assert loaded.stripped == removed
    assert all(part in caplog.text for part in removed)


def test_a_wrapper_in_the_middle_of_names_is_left_out(tmp_path):
    """Blocks are often compiled, or checkpointed, one by one."""

    def wrapped(name: str) -> str:
        return name.replace("layer.0.", "layer.0._checkpoint_wrapped_module._orig_mod.")

    loaded = hub.load(saved(tmp_path / "a", "bert_mlm_tied", rename=wrapped))
    assert tree.digest(loaded.params["encoder"]) == encoder_digest("bert_mlm_tied")
    assert loaded.stripped == ("_orig_mod.", "_checkpoint_wrapped_module.")


def test_a_bare_encoder_inside_another_module_leaves_the_head_beside_it_unknown(tmp_path):
    def inside(name: str) -> str:
        return name if name.startswith("scorer") else f"model.{name}"

    folder = saved(tmp_path / "a", "bert_bare_pooler", {"scorer.weight": weights(1, 36)}, inside)
    loaded = hub.load(folder)
    assert loaded.head == Classifier(0, "pooler")
    assert shapes(loaded) == {"unknown head": {"scorer.weight": (1, 36)}}


def test_two_encoders_in_one_file_are_an_error_that_names_both(tmp_path):
    folder = saved(tmp_path / "a", "bert_bare_pooler")
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    both = {f"question.{name}": tensor for name, tensor in tensors.items()}
    both |= {f"context.{name}": tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(both, file)
    with pytest.raises(CheckpointError, match=r"2 encoders, under .*'(question|context)\.'"):
        hub.load(folder)


# What config.json has to say


def test_two_classes_need_no_names(tmp_path):
    """transformers leaves out what it gives by default."""
    extra = {"classifier.weight": weights(2, 36), "classifier.bias": weights(2)}
    loaded = hub.load(saved(tmp_path / "a", "bert_bare_pooler", extra))
    assert (loaded.task, loaded.labels) == ("classification", ("LABEL_0", "LABEL_1"))


def test_one_output_is_a_regression_unless_the_file_says_otherwise(tmp_path):
    extra = {"classifier.weight": weights(1, 36), "classifier.bias": weights(1)}
    names = {"id2label": {"0": "LABEL_0"}}
    loaded = hub.load(saved(tmp_path / "a", "bert_bare_pooler", extra, **names))
    assert (loaded.task, loaded.labels) == ("regression", ())
    names |= {"problem_type": "multi_label_classification"}
    loaded = hub.load(saved(tmp_path / "b", "bert_bare_pooler", extra, **names))
    assert (loaded.task, loaded.labels) == ("multilabel", ("LABEL_0",))


def test_what_was_discarded_comes_back_as_json(tmp_path):
    loaded = hub.load(saved(tmp_path / "a", "gpt2_bare", {"extra.weight": weights(5, 7)}))
    record = json.loads(json.dumps(hub.unread_record(loaded)))
    assert record == {"unread": {"unknown head": {"extra.weight": [5, 7]}}}
    assert hub.unread_record(hub.load(tiny.REFERENCES / "gpt2_bare")) == {}


@pytest.mark.slow
def test_a_run_records_what_was_discarded_and_a_run_of_that_run_nothing(tmp_path):
    folder = saved(tmp_path / "a", "bert_bare_pooler", {"projection.weight": weights(5, 7)})
    rows = tiny.sentences(12)
    texts = [text for text, _ in rows]
    labels = [label for _, label in rows]
    settings = {"strategy": "frozen", "epochs": 1, "batch_size": 4}
    adapt.finetune(folder, texts, labels, out=tmp_path / "run", **settings)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert lineage["discarded"]["unread"] == {"unknown head": {"projection.weight": [5, 7]}}
    assert set(lineage["discarded"]["shapes"]) == {"head/pooler/kernel", "head/pooler/bias"}
    run = hub.load(tmp_path / "run")
    assert not run.unread and not run.notes
    again = adapt.finetune(run, texts, labels, **settings)
    assert "unread" not in again.lineage["discarded"]
