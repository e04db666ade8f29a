"""Faults that no run begins with: each is planted in two ways, and refused by one line."""

import pytest
import safetensors.numpy

import adapt
from adapt.errors import CheckpointError, DataError, StrategyError
from tests.helpers import healthy, tiny

pytestmark = pytest.mark.usefixtures("own_cache")
TRAIN = healthy.sentences(40)
HEAD_ALONE = adapt.Phase([("head/.*", "head"), (".*", adapt.FROZEN)], 1)


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.mark.parametrize("before", [[], [HEAD_ALONE]])
def test_everything_frozen(bert, before):
    frozen = adapt.Phase([("head/.*", adapt.FROZEN), (".*", adapt.FROZEN)], 1)
    with pytest.raises(StrategyError, match="every rule freezes, so nothing would train"):
        adapt.diagnose(bert, *TRAIN, strategy=[*before, frozen])


@pytest.mark.parametrize("pattern", ["haed/.*", "encoder/block_07/.*"])
def test_a_rule_that_matches_nothing(bert, pattern):
    rules = [(pattern, "head"), (".*", "encoder")]
    with pytest.raises(StrategyError, match="wins no parameter: the nearest paths are"):
        adapt.diagnose(bert, *TRAIN, strategy=[adapt.Phase(rules, 1)])


@pytest.mark.parametrize("label", ["neutral", "Positive"])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_label_that_training_does_not_have(bert, name, label):
    with pytest.raises(DataError, match=rf"row 2: label '{label}' is unseen in training"):
        adapt.diagnose(bert, *TRAIN, **{name: (["a film", "the film"], ["positive", label])})


@pytest.mark.parametrize("task", ["classification", "tags"])
def test_one_class_for_all_rows(bert, task):
    data = (TRAIN[0], ["good"] * 40)
    if task == "tags":
        data = ([["a", "film"]] * 40, [["O", "O"]] * 40)
    with pytest.raises(DataError, match="takes at least two classes"):
        adapt.diagnose(bert, *data, task=task)


@pytest.mark.parametrize("length", [21, 512])
def test_more_tokens_than_positions(bert, length):
    with pytest.raises(StrategyError, match="must be 3 to 20, the encoder's positions"):
        adapt.diagnose(bert, *TRAIN, max_length=length)


@pytest.mark.parametrize("planted", ["missing", "renamed", "of another shape", "left over"])
def test_an_encoder_that_is_loaded_in_part(tmp_path, planted):
    folder = tiny.checkpoint(tmp_path / "bert", "bert_mlm_tied", 1)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "bert.embeddings.LayerNorm.weight"
    name = name if name in tensors else name.removeprefix("bert.")
    tensor = tensors.pop(name)
    if planted == "renamed":
        tensors[name.replace("weight", "scale")] = tensor
    elif planted == "of another shape":
        tensors[name] = tensor[:-4].copy()
    elif planted == "left over":
        tensors[name] = tensor
        query = next(name for name in tensors if name.endswith("query.weight"))
        tensors[query.replace("layer.0", "layer.1")] = tensors[query]
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"do not fit its config.json \(- missing"):
        adapt.load(folder)


@pytest.mark.parametrize("words", [101, 500])
def test_a_tokenizer_with_more_tokens_than_the_embedding(tmp_path, words):
    folder = tiny.checkpoint(tmp_path / "bert", "bert_mlm_tied", 1)
    vocabulary = [*tiny.SPECIAL, *(f"word{number}" for number in range(words - 5))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    with pytest.raises(CheckpointError, match="the tokenizer belongs to another checkpoint"):
        adapt.load(folder)
