"""Checkpoint folders: what is whole loads, in full; anything else is one error with what, where and
the mend.
"""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from adapt import files, tree
from adapt.errors import AdaptError, CheckpointError
from adapt.export import layout
from adapt.models import CausalLM, Classifier, MaskedLM, Span, Tagger
from adapt.options import ModelOptions
from adapt.pretrained import assets, families, hub
from adapt.training import checkpoint, optim
from adapt.training.step import init_state
from tests.helpers import tiny

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def folder(tmp_path):
    """A masked-LM BERT with vocab.txt that a test may damage."""
    return tiny.checkpoint(tmp_path / "model", "bert_mlm_tied")


def refusal(folder, lines: int = 1) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.load(folder)
    assert len(str(caught.value).splitlines()) == lines
    return str(caught.value)


def edit_config(folder, **changes) -> None:
    """Change entries of config.json; "absent" leaves one out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    kept = {name: value for name, value in config.items() if value != "absent"}
    file.write_text(json.dumps(kept))


def edit_tensors(folder, changes: dict[str, np.ndarray | None]) -> None:
    """Change tensors of model.safetensors; None leaves one out."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file) | changes
    kept = {name: value for name, value in tensors.items() if value is not None}
    safetensors.numpy.save_file(kept, file)


# config.json


def test_a_folder_without_config_says_what_a_checkpoint_has(folder):
    (folder / "config.json").unlink()
    message = refusal(folder)
    assert message.startswith(f"no config.json in {folder}: a checkpoint folder has config.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list, not a JSON object"),
        ("{}", 'has no model_type, which says of which family the encoder is: add "model_type"'),
        ('{"architectures": ["BertModel"]}', 'BertModel: add "model_type": "bert" to it'),
        ("\x80", "is not JSON"),
    ],
)
def test_a_config_that_is_none_is_named(folder, content, why):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    message = refusal(folder)
    assert str(folder / "config.json") in message
    assert why in message


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "vocab.txt", "tokenizer.json"]
)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<title>403</title>\n", "HTML"),
    ],
)
def test_a_file_that_was_not_fetched_is_named(folder, name, content, named):
    (folder / name).write_text(content)
    message = refusal(folder)
    assert str(folder / name) in message
    assert named in message


def test_an_unknown_architecture_is_answered_with_the_known_ones(folder):
    edit_config(folder, model_type="mamba")
    known = ", ".join(families.FAMILIES)
    assert f"'mamba' in {folder}/config.json: adapt reads {known}" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": "absent"}, "config.json has no entry 'hidden_size'"),
        ({"num_attention_heads": 5}, "says 5 heads, which does not divide the width 24"),
        ({"num_hidden_layers": 0}, "says 0 for num_hidden_layers: it must be a whole"),
        ({"vocab_size": "many"}, "says 'many' for vocab_size"),
        ({"hidden_act": "swish7"}, "unknown activation 'swish7' in "),
        ({"position_embedding_type": "relative_key"}, 'only "absolute" is read, choose'),
    ],
)
def test_a_config_that_makes_no_encoder_is_refused(folder, changes, why):
    edit_config(folder, **changes)
    assert why in refusal(folder)


def test_class_names_go_by_their_numbers_whatever_the_order_of_the_file(tmp_path):
    names = {"2": "c", "0": "a", "1": "b"}
    case = tiny.checkpoint(tmp_path / "model", "bert_classifier", id2label=names)

    def task_and_labels() -> tuple[str, tuple[str, ...]]:
        loaded = hub.load(case)
        return loaded.task, loaded.labels

    assert task_and_labels() == ("classification", ("a", "b", "c"))
    edit_config(case, problem_type="multi_label_classification")
    assert task_and_labels() == ("multilabel", ("a", "b", "c"))
    edit_config(case, id2label={"0": "a", "1": "b"})
    assert task_and_labels() == ("", ())


# model.safetensors


def test_a_folder_without_weights_is_refused_with_a_hint_where_there_are_others(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"no model.safetensors in {folder}"
    for name, mend in (
        ("model.onnx", "get the model with model.safetensors"),
        ("flax_model.msgpack", "M.from_pretrained('.', from_flax=True)"),
        ("tf_model.h5", "M.from_pretrained('.', from_tf=True)"),
        ("training_args.bin", ""),
        ("pytorch_model.bin", "M.from_pretrained('.').save_pretrained"),
        ("model.ckpt", "write its state_dict by safetensors.torch"),
        ("adapter_model.safetensors", "adapter_config.json is missing"),
        ("old.safetensors", "rename it if that is the model"),
    ):
        (folder / name).write_bytes(b"")
        message = refusal(folder)
        assert mend in message
        assert (name in message) == bool(mend)
        (folder / name).unlink()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 500, -1000, -1])
def test_a_truncated_file_is_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert message.startswith(f"{file} is truncated or corrupt (")
    assert message.endswith("fetch it again")


def test_a_damaged_header_is_refused_or_harmless_and_never_anything_else(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header_size = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(header_size)] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            hub.read_tensors(folder)
        except CheckpointError as error:
            num_refused += 1
            assert len(str(error).splitlines()) == 1
    # A flipped letter of a tensor's name is for the comparison of names to see.
    assert num_refused > 30


def test_the_diff_names_missing_unknown_and_misshapen_tensors_as_the_file_spells_them(folder):
    """Those of the encoder: what is not the encoder's is discarded instead."""
    extra = np.zeros(3, np.float32)
    bias = np.zeros(7, np.float32)
    changes = {QUERY: None, "bert.encoder.layer.0.extra": extra, "extra": extra}
    changes |= {QUERY.replace("weight", "bias"): bias, "cls.predictions.bias": bias}
    edit_tensors(folder, changes)
    first, *lines = refusal(folder, lines=4).splitlines()
    assert first.startswith(f"the weights in {folder} do not fit its config.json (- missing, ")
    assert sorted(lines) == [
        "  ! encoder.layer.0.attention.self.query.bias (7,), expected (24,)",
        "  + encoder.layer.0.extra (3,)",
        f"  - {QUERY.removeprefix('bert.')} (24, 24)",
    ]


@pytest.mark.parametrize(
    ("layers", "shown"), [(3, "  - encoder.layer.2."), (1, "  + encoder.layer.1.")]
)
def test_fewer_layers_than_the_config_says_and_more_are_refused(folder, layers, shown):
    edit_config(folder, num_hidden_layers=layers)
    # A block has 16 tensors, of which 12 are shown.
    _, *lines, last = refusal(folder, lines=14).splitlines()
    assert all(line.startswith(shown) for line in lines)
    assert last == "  ... and 4 more"


def test_a_tensor_under_two_spellings_is_refused(folder):
    other_spelling = QUERY.removeprefix("bert.")
    edit_tensors(folder, {other_spelling: np.zeros((24, 24), np.float32)})
    assert f"hold {other_spelling} twice" in refusal(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_load_as_float32_with_the_values_they_hold(folder, dtype):
    whole = hub.load(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit_tensors(folder, {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    mapped = hub.map_tensors(folder / "model.safetensors")
    assert not any(tensor.flags.owndata or tensor.flags.writeable for tensor in mapped.values())
    half = hub.load(folder)
    assert {leaf.dtype for leaf in tree.paths(half.params).values()} == {np.dtype("float32")}
    rounded = tree.map_paths(lambda _, leaf: leaf.astype(dtype).astype(np.float32), whole.params)
    assert tree.digest(half.params) == tree.digest(rounded) != tree.digest(whole.params)


# Shards


@pytest.fixture
def shards(tmp_path):
    return tiny.checkpoint(tmp_path / "model", "bert_mlm_untied_sharded")


def test_shards_load_as_one_file_does(shards, tmp_path):
    single = tmp_path / "single"
    shutil.copytree(shards, single, ignore=shutil.ignore_patterns("*.safetensors*"))
    safetensors.numpy.save_file(hub.read_tensors(shards), single / "model.safetensors")
    assert tree.digest(hub.load(single).params) == tree.digest(hub.load(shards).params)


def test_a_missing_shard_is_named(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    assert "names model-00002-of-00003.safetensors, which is not in the folder" in refusal(shards)


def test_a_shard_without_its_tensors_is_an_error(shards):
    safetensors.numpy.save_file({}, shards / "model-00002-of-00003.safetensors")
    assert "names tensors that the shards do not hold: " in refusal(shards)


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "nonsense"]
)
def test_an_index_that_is_none_is_named(shards, content):
    (shards / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(shards)


# The tokenizer


def test_a_tokenizer_larger_than_the_embedding_belongs_to_another_checkpoint(folder):
    words = [f"w{number}" for number in range(96)]
    (folder / "vocab.txt").write_text("\n".join([*tiny.SPECIAL, *words]))
    message = refusal(folder)
    assert "gives ids up to 100, the embedding has 100 rows" in message
    assert message.endswith("belongs to another checkpoint")


@pytest.mark.parametrize(("said", "expected"), [(7, 7), (10_000, 20), (None, 20)])
def test_the_maximal_length_is_that_of_the_file_within_the_positions(folder, said, expected):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": said}))
    assert hub.load(folder).tokenizer.max_length == expected


# Names


def test_a_name_that_is_nothing_is_one_line(folder):
    assert "give the folder that holds config.json" in refusal(folder / "config.json")
    assert "give a folder, a bundled name (minilm, tiny-bert) or a hub id" in refusal("./nowhere")


@pytest.mark.parametrize(
    ("is_reachable", "reason"), [(True, "no network"), (False, "it cannot be reached from here")]
)
def test_what_the_hub_does_not_give_is_one_line(monkeypatch, is_reachable, reason):
    import huggingface_hub

    def fail(name, **_):
        raise OSError("no network\nand more about it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: is_reachable)
    assert refusal("nobody/nothing").endswith(f"and the hub gave none: {reason}")


@pytest.mark.parametrize("is_reachable", [True, False])
def test_a_hub_id_is_what_the_hub_gives_or_the_cache_holds(
    folder, monkeypatch, own_cache, is_reachable
):
    import huggingface_hub

    calls = []

    def download(name, **arguments):
        calls.append((name, arguments))
        return folder

    monkeypatch.setattr(assets, "is_hub_reachable", lambda: is_reachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert tree.digest(hub.load("some/model").params) == tree.digest(hub.load(folder).params)
    arguments = {
        "allow_patterns": hub.PATTERNS,
        "cache_dir": own_cache / "hub",
        "local_files_only": not is_reachable,
    }
    assert calls == [("some/model", arguments)]
    assert not any(pattern.endswith((".bin", "*")) for pattern in hub.PATTERNS)


# Runs and exports


@pytest.fixture
def run(folder, tmp_path):
    """(a run's folder with one checkpoint, what was saved): the encoder under a classifier."""
    pretrained = hub.load(folder)
    adapted = dataclasses.replace(
        pretrained,
        head=Classifier(3, "cls", dropout=0.2),
        task="classification",
        labels=("a", "b", "c"),
    )
    shapes = adapted.model.shapes()
    head = tree.map_paths(lambda _, leaf: np.full(leaf.shape, 0.5, np.float32), shapes["head"])
    params = {"encoder": pretrained.params["encoder"], "head": head}
    labels = tree.label(params, [("head/.*", "head"), (".*", optim.FROZEN)])
    tx = optim.by_label({"head": optim.adamw(0.1)}, labels)
    frozen, state = init_state(params, labels, tx, jax.random.key(0))
    target = tmp_path / "run"
    target.mkdir()
    hub.save_model(target, adapted)
    checkpoint.save_frozen(target / "checkpoints", frozen)
    checkpoint.save(target / "checkpoints", state, {}, best=True)
    return target, dataclasses.replace(adapted, params=params)


def test_a_run_loads_as_what_was_saved(run):
    target, saved = run
    loaded = hub.load(target)
    for name in ("config", "head", "task", "labels"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert tree.digest(loaded.params) == tree.digest(saved.params)
    assert loaded.tokenizer.max_length == saved.tokenizer.max_length
    tokens, _ = loaded.tokenizer.encode(["the film"])
    expected, _ = saved.tokenizer.encode(["the film"])
    assert tokens[0].tolist() == expected[0].tolist()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"head": 3}',
        '{"head": {"kind": "Oracle"}}',
        '{"head": {"kind": "Classifier", "x": 1}}',
    ],
)
def test_a_damaged_model_json_is_one_line(run, content):
    target, _ = run
    (target / "model.json").write_text(content)
    assert str(target / "model.json") in refusal(target)


@pytest.mark.parametrize("images", [{"mean": [0.5]}, {"size": 4, "colour": True}, 3])
def test_damaged_image_settings_are_one_line(run, images):
    target, _ = run
    content = json.loads((target / "model.json").read_text())
    (target / "model.json").write_text(json.dumps(content | {"images": images}))
    assert str(target / "model.json") in refusal(target)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("encoder", {"width": "24"}),
        ("encoder", {"heads": 5}),
        ("encoder", {"heads": 0}),
        ("encoder", {"activation": "gelv"}),
        ("encoder", {"norm_epsilon": None}),
        ("encoder", {"dropout": float("nan")}),
        ("head", {"classes": "3"}),
        ("head", {"pooling": ["mean"]}),
        ("embedding", {"normalize": 1}),
        ("embedding", {"prompts": {"query": 3}}),
        ("", {"max_length": "12"}),
        ("", {"labels": [1, 2, 3]}),
    ],
)
def test_a_value_of_another_type_in_model_json_is_one_line(run, part, changes):
    target, _ = run
    content = json.loads((target / "model.json").read_text())
    changed = changes if not part else {part: content[part] | changes}
    (target / "model.json").write_text(json.dumps(content | changed))
    assert str(target / "model.json") in refusal(target)


@pytest.mark.parametrize(("rows", "is_said"), [(227, False), (228, True)])
def test_a_vocabulary_whose_end_is_missing_is_said(tmp_path, caplog, rows, is_said):
    folder = tiny.checkpoint(tmp_path / "bert", "bert_bare_pooler", 1, vocab_size=rows)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
    safetensors.numpy.save_file(tensors, file)
    words = (folder / "vocab.txt").read_text().split("\n")
    more = [f"w{number}" for number in range(100 - len(words))]
    (folder / "vocab.txt").write_text("\n".join([*words, *more]))
    hub.load(folder)
    said = f"{folder}: the tokenizer has 100 tokens and the embedding {rows} rows"
    assert is_said == any(said in line for line in caplog.messages)


@pytest.mark.parametrize("value", [1e19, -3e38, float("inf"), float("nan")])
def test_a_weight_that_no_training_reaches_is_damaged(tmp_path, value):
    folder = tiny.checkpoint(tmp_path / "bert", "bert_bare_pooler", 1)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name][1, 2] = value
    safetensors.numpy.save_file(tensors, file)
    assert f"{name} in {folder}" in refusal(folder) and "is damaged" in refusal(folder)


def test_a_run_without_checkpoint_or_with_a_damaged_one_is_refused(run):
    target, _ = run
    for file in (target / "checkpoints" / "frozen" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in refusal(target)
    shutil.rmtree(target / "checkpoints" / "frozen")
    assert "- encoder/" in refusal(target, lines=14)
    shutil.rmtree(target / "checkpoints")
    assert "the run stopped before its first save" in refusal(target)


def test_a_written_folder_loads_as_it_was_and_replaces_the_old_one_whole(folder, tmp_path):
    model = hub.load(folder)
    tensors = layout.to_tensors(model.config, model.params, model.head)
    beside = tmp_path / "beside"
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    layout.write_folder(beside, layout.write_config(model.config), tensors, {"sub/notes.txt": "é"})
    files.replace_folder(beside, target)
    assert not beside.exists()
    assert not (target / "old").exists()
    assert (target / "sub/notes.txt").read_text("utf-8") == "é"
    assert tree.digest(hub.load(target).params) == tree.digest(model.params)


def test_a_checkpoint_shows_itself_in_a_line(folder, run):
    target, _ = run
    of_pretrained = repr(hub.load(folder))
    of_run = repr(hub.load(target))
    for line in (of_pretrained, of_run):
        assert len(line) < 300
        assert "bert" in line
        assert "array" not in line
    assert "; head: Classifier of 3 classes, pooling cls; task: classification)" in of_run


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (Classifier(0, "pooler"), "pooler"),
        (Classifier(0, "mean"), "embeddings, pooling mean"),
        (Classifier(1, "last"), "Classifier of 1 output, pooling last"),
        (Tagger(5), "Tagger of 5 classes"),
        (MaskedLM(40), "MaskedLM"),
        (CausalLM(40), "CausalLM"),
        (Span(24), "Span"),
    ],
)
def test_a_head_is_shown_by_what_it_puts_out(head, words):
    assert hub.describe(head) == words


def test_every_refusal_can_be_caught_as_one_kind():
    assert issubclass(CheckpointError, AdaptError)
    assert issubclass(AdaptError, ValueError)


def test_dropout_of_attention_is_set_by_itself_or_with_the_rest(tmp_path):
    pretrained = hub.load(tiny.checkpoint(tmp_path / "checkpoint", "bert_mlm_tied", blocks=1))

    def rates(**options):
        changed = hub.with_options(pretrained, ModelOptions(checkpoint="", **options))
        return changed.config.dropout, changed.config.attention_dropout

    own = (pretrained.config.dropout, pretrained.config.attention_dropout)
    assert rates() == own
    assert rates(dropout=0.3) == (0.3, 0.3)
    assert rates(attention_dropout=0.2) == (own[0], 0.2)
    assert rates(dropout=0.3, attention_dropout=0.0) == (0.3, 0.0)
