"""What RoBERTa and its siblings, DistilBERT and ELECTRA have that BERT has not."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapt.errors import CheckpointError, ExportError
from adapt.export import heads
from adapt.export.inputs import input_files
from adapt.models import Classifier
from adapt.pretrained import families, hub, importing
from adapt.pretrained.tokenizer_files import read_tokenizer
from tests.helpers.bert_like_files import write_tokenizer

REFERENCES = Path(__file__).parents[1] / "references"
WORDS = ["film", "good", "the", "was"]


def folder_of(tmp_path: Path, case: str, **changes) -> Path:
    """A copy of a recorded checkpoint with a tokenizer and another config.json."""
    folder = tmp_path / case
    shutil.copytree(REFERENCES / case, folder, ignore=shutil.ignore_patterns("*.npz"))
    write_tokenizer(folder, case, WORDS)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_positions_count_from_the_padding_token_on(tmp_path):
    config = hub.load(REFERENCES / "camembert_mlm_untied").config
    assert (config.position_offset, config.pad_token, config.positions) == (4, 3, 12)
    run = hub.load(folder_of(tmp_path, "roberta_mlm"))
    assert run.tokenizer.max_length == run.config.positions == 14
    assert run.params["encoder"]["embedding"]["position"].shape == (16, 16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type is "relative_key"'),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
        ({"max_position_embeddings": 2}, "max_position_embeddings 2"),
    ],
)
def test_an_entry_that_changes_the_computation_is_refused_by_name(tmp_path, changes, named):
    with pytest.raises(CheckpointError, match=named):
        hub.load(folder_of(tmp_path, "roberta_mlm", **changes))


def test_roberta_s_tokenizer_of_two_files_is_that_of_transformers(tmp_path):
    """The ids are those of transformers 5.24."""
    write_tokenizer(tmp_path, "roberta", ["the", "film", "was", "good", "so", "plot"])
    ids = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    for token in ("Ġt", "Ġth", "Ġthe", "th", "the"):
        ids[token] = len(ids)
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nĠt h\nĠth e\nt h\nth e\n")
    own_class = families.get_family("roberta").tokenizer
    backend = read_tokenizer(tmp_path, own_class, {}).backend
    assert backend.encode(" the  film").ids == [0, 22, 18, 18, 7, 10, 11, 12, 2]
    pair = backend.encode("the film", "was good")
    second = [17, 4, 15, 18, 8, 13, 13, 5, 2]
    assert pair.ids == [0, 24, 18, 7, 10, 11, 12, 2, 2, *second]
    assert not any(pair.type_ids)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    backend = read_tokenizer(tmp_path, own_class, {}).backend
    assert backend.encode("the film").ids == [0, 22, 18, 7, 10, 11, 12, 2]


@pytest.mark.parametrize("case", ["xlm_roberta_tags", "roberta_bare"])
def test_a_tokenizer_of_sentencepiece_alone_is_refused_with_the_mend(tmp_path, case):
    folder = tmp_path / case
    shutil.copytree(REFERENCES / case, folder)
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e")
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model.*tokenizer\.json"):
        hub.load(folder)


def test_another_padding_token_than_positions_count_by_does_not_export(tmp_path):
    run = hub.load(folder_of(tmp_path, "roberta_bare"))
    config = dataclasses.replace(run.config, position_offset=3, positions=11)
    with pytest.raises(ExportError, match="padding token"):
        input_files(dataclasses.replace(run, config=config))


@pytest.mark.parametrize("case", ["roberta_bare", "distilbert_mlm", "electra_discriminator"])
def test_a_head_on_the_first_token_fits_a_class_with_a_hidden_layer(case):
    """Its logits are the same, whatever the hidden layer's activation."""
    run = hub.load(REFERENCES / case)
    rng = np.random.default_rng(0)
    width = run.config.width
    head = Classifier(3, "cls", bias=False)
    kernel = rng.normal(size=(width, 3)).astype(np.float32)
    params = {"encoder": run.params["encoder"], "head": {"classifier": {"kernel": kernel}}}
    run = dataclasses.replace(run, head=head, params=params)
    target = heads.target_of(head, families.get_family(run.config.family))
    fitted, notes = heads.fit(run, target)
    assert fitted.head.hidden and len(notes) == 1

    norm = run.params["encoder"][f"block_{run.config.layers - 1:02d}"]["mlp_norm"]
    x = rng.normal(size=(4, width)).astype(np.float32)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * norm["scale"] + norm["bias"]
    batch = {"length": np.ones(4, np.int32), "first": np.arange(4)}
    expected = head.apply({"params": params["head"]}, x, batch)
    found = fitted.head.apply({"params": fitted.params["head"]}, x, batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_pooler_is_the_hidden_layer_of_roberta_s_class(tmp_path):
    run = hub.load(REFERENCES / "roberta_bare")
    assert run.head == Classifier(0, "pooler")
    classifier = {"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)}
    params = run.params | {"head": run.params["head"] | {"classifier": classifier}}
    run = dataclasses.replace(run, head=Classifier(3, "pooler"), params=params)
    target = heads.target_of(run.head, families.get_family("roberta"))
    fitted, notes = heads.fit(run, target)
    assert (fitted.head.pooling, fitted.head.hidden) == ("cls", "tanh") and not notes
    assert fitted.params["head"].keys() == {"hidden", "classifier"}


def test_what_is_no_classifier_of_tokens_is_left_out(tmp_path):
    """RobertaForMultipleChoice has a pooler beside its classifier."""
    folder = folder_of(tmp_path, "roberta_bare")
    model = hub.load(folder)
    tensors = dict(hub.read_tensors(folder))
    tensors["classifier.weight"] = np.zeros((1, 16), np.float32)
    hf = hub.read_json(folder, "config.json")
    imported = importing.to_params(model.config, hf, tensors, "memory")
    assert imported.head == Classifier(0, "pooler")
    assert imported.unread == {"unknown head": {"classifier.weight": (1, 16)}}
