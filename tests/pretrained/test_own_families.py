"""Families of one's own: a slip in one is said where it is made, or with the checkpoint that shows it."""

import dataclasses
import re

import numpy as np
import pytest

from adapt.errors import CheckpointError, ExportError, ExtensionError
from adapt.export.inputs import input_files
from adapt.export.layout import write_config
from adapt.models import Classifier
from adapt.pretrained import config_file, families, hub
from adapt.pretrained.families import Row, heads
from tests.helpers import tiny

BERT = families.get_family("bert")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": [("layres", "depth")]}, "'layres', which there is not: choose layers"),
        ({"config": [("layers",)]}, "a row is (field of EncoderConfig, entry of config.json)"),
        ({"always": {"prenorm": True}}, "'prenorm', which there is not: choose pre_norm"),
        ({"pooling": "meen"}, "pools by 'meen', which there is not: choose mean"),
        ({"classes": {"masked lm": "X"}}, "'masked lm', which there is not: choose masked LM"),
        ({"prefixes": {"span": "bert."}}, "'span', which there is not: choose spans"),
        ({"table": [Row("x", ("y",), kinds=("spam",))]}, "'spam', which there is not"),
        ({"prefix": "bert"}, "the prefix 'bert' of the family has to end in a dot"),
    ],
)
def test_a_slip_in_a_family_is_said_where_it_is_made(changes, words):
    with pytest.raises(ExtensionError, match=re.escape(words)):
        dataclasses.replace(BERT, **changes)


def test_the_kind_of_a_head_of_ones_own_is_taken():
    assert dataclasses.replace(BERT, classes={"the head Mine": "MyClass"})


def test_a_row_with_a_path_alone_or_an_unknown_layout_is_refused():
    with pytest.raises(ExtensionError, match="'encoder/a' for its leaves: give a tuple"):
        Row("a", "encoder/a")  # pyright: ignore
    with pytest.raises(ExtensionError, match="layout 'transpose': layouts are same, transposed"):
        Row("a", ("encoder/a",), "transpose")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load(**changes)` is a checkpoint of a family that is BERT's but for these fields."""
    folder = tiny.checkpoint(tmp_path / "mine", "bert_mlm_tied", model_type="mine")

    def load(settings=None, **changes):
        monkeypatch.setitem(families.FAMILIES, "mine", dataclasses.replace(BERT, **changes))
        tiny.change_config(folder, settings or {})
        return hub.load(folder)

    return load


def rows_but(name: str, **changes: object) -> list[Row]:
    """BERT's table without the rows of this name, or with other values in them."""
    kept = []
    for row in BERT.table:
        if not row.name.startswith(name):
            kept.append(row)
        elif changes:
            kept.append(dataclasses.replace(row, **changes))
    return kept


def test_a_leaf_without_a_row_is_named(load):
    table = rows_but("encoder.layer.#.output.dense.bias", paths=("encoder/block_#/mlp/dwon/bias",))
    wrong = "the family mine has no row for encoder/block_00/mlp/down/bias, encoder/block_01/mlp"
    with pytest.raises(CheckpointError, match=wrong):
        load(table=table)


def test_a_recognised_head_without_a_row_is_named(load):
    with pytest.raises(CheckpointError, match="no row for head/transform/bias, head/transform/ker"):
        load(table=rows_but("cls.predictions.transform.dense"))


def test_a_field_that_no_row_says_is_named(load):
    config = families.without(BERT.config, "mlp_width")
    with pytest.raises(CheckpointError, match="the family mine has no row for mlp_width"):
        load(config=config)


def test_a_tokenizer_that_is_not_made_is_named(load):
    with pytest.raises(CheckpointError, match="tokenizer BertTokeniser, which is not made here"):
        load(tokenizer="BertTokeniser")


def test_another_name_of_a_tokenizer_is_taken(load):
    assert load(tokenizer="DistilBertTokenizer").tokenizer is not None


def test_a_decoder_with_no_embedding_to_compare_is_refused():
    tensors = {"decoder": np.zeros((3, 2)), "tokens": np.zeros((3, 2))}
    with pytest.raises(CheckpointError, match="decoder is compared with words, which the file has"):
        heads.tie({}, tensors, "decoder", "words")


@pytest.mark.parametrize("value", [-1, "1", None, 1.0])
def test_an_offset_of_positions_that_is_no_row_is_refused_under_its_entry(load, value):
    config = [*BERT.config, ("position_offset", "first_row")]
    with pytest.raises(CheckpointError, match=f"says {value!r} for first_row: it must be a whole"):
        load({"first_row": value}, config=config)


def test_positions_that_do_not_count_by_padding_export_from_any_row(load):
    """The padding token of the file has the id 0, and the first token the row 3."""

    def complete(hf, fields):
        return fields | {"positions": fields["positions"] - 3, "position_offset": 3}

    def entries(config, head):
        return {"max_position_embeddings": config.positions + 3}

    changes = {"complete": complete, "entries": entries}
    run = dataclasses.replace(load(**changes), head=Classifier(0, "mean"))
    exported, _, _ = input_files(run)
    written = {"model_type": "mine", **write_config(exported.config)}
    assert config_file.read_config(written, "memory") == run.config
    with pytest.raises(ExportError, match="the first row of its table of positions is that of 2"):
        input_files(dataclasses.replace(load(**changes, counts_after_padding=True), head=run.head))


def test_a_family_that_is_registered_by_a_module_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "mine", "no_such_module")
    with pytest.raises(CheckpointError, match="mine is registered as no_such_module: No module"):
        families.get_family("mine")


def test_an_unknown_model_type_is_told_of_modules():
    with pytest.raises(CheckpointError, match="for another `import` the module that adds it"):
        families.get_family("minne")
