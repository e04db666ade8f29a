"""Checkpoint folders: what is whole loads, in full; what is not is one error with what, where and the mend."""

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
from adapt.pretrained import assets, hub
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
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(
        json.dumps({name: value for name, value in config.items() if value != "absent"})
    )


def edit_tensors(folder, **changes) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file) | changes
    safetensors.numpy.save_file(
        {name: value for name, value in tensors.items() if value is not None}, file
    )


# config.json


def test_a_folder_without_config_says_what_a_checkpoint_has(folder):
    (folder / "config.json").unlink()
    assert (
        refusal(folder)
        == f"no config.json in {folder}: a checkpoint folder has config.json and model.safetensors"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list, not a JSON object"),
        ("{}", "has no model_type"),
        ("\x80", "is not JSON"),
    ],
)
def test_a_config_that_is_none_is_named(folder, content, why):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    message = refusal(folder)
    assert str(folder / "config.json") in message and why in message


def test_an_unknown_architecture_is_answered_with_the_known_ones(folder):
    edit_config(folder, model_type="mamba")
    assert (
        refusal(folder)
        == "unknown architecture 'mamba' in config.json: adapt reads bert, gpt2, vit"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": "absent"}, "config.json has no entry 'hidden_size'"),
        ({"num_attention_heads": 5}, "says 5 heads, which does not divide the width 24"),
        ({"num_hidden_layers": 0}, "says 0 for layers: it must be at least 1"),
        ({"vocab_size": "many"}, "says 'many' for vocabulary"),
        ({"hidden_act": "swish7"}, "unknown activation 'swish7' in config.json"),
        ({"position_embedding_type": "relative_key"}, "only absolute is read"),
    ],
)
def test_a_config_that_makes_no_encoder_is_refused(folder, changes, why):
    edit_config(folder, **changes)
    assert why in refusal(folder)


def test_class_names_go_by_their_numbers_whatever_the_order_of_the_file(tmp_path):
    case = tiny.checkpoint(
        tmp_path / "model", "bert_classifier", id2label={"2": "c", "0": "a", "1": "b"}
    )
    loaded = hub.load(case)
    assert (loaded.task, loaded.labels) == ("classification", ("a", "b", "c"))
    edit_config(case, problem_type="multi_label_classification")
    assert (hub.load(case).task, hub.load(case).labels) == ("multilabel", ("a", "b", "c"))
    edit_config(case, id2label={"0": "a", "1": "b"})
    assert (hub.load(case).task, hub.load(case).labels) == ("", ())


# model.safetensors


def test_a_folder_without_weights_is_refused_with_a_hint_where_there_are_others(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"no model.safetensors in {folder}"
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert refusal(folder).endswith("(found pytorch_model.bin; convert it to safetensors first)")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 500, -1000, -1])
def test_a_truncated_file_is_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert message.startswith(f"{file} is truncated or corrupt (") and message.endswith(
        "fetch it again"
    )


def test_a_damaged_header_is_refused_or_harmless_and_never_anything_else(folder):
    file, random = folder / "model.safetensors", np.random.default_rng(0)
    whole = file.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(size)] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            hub.read_tensors(folder)
        except CheckpointError as fault:
            refused += 1
            assert len(str(fault).splitlines()) == 1
    assert refused > 30  # a flipped letter of a tensor's name is for the names' comparison to see


def test_the_diff_names_missing_unknown_and_misshapen_tensors_as_the_file_spells_them(folder):
    edit_tensors(
        folder,
        **{
            QUERY: None,
            "extra": np.zeros(3, np.float32),
            "cls.predictions.bias": np.zeros(7, np.float32),
        },
    )
    first, *lines = refusal(folder, lines=4).splitlines()
    assert (
        first
        == f"the weights in {folder} do not fit its config.json (- missing, + not known, ! misshapen):"
    )
    assert sorted(lines) == [
        "  ! cls.predictions.bias (7,), expected (100,)",
        "  + extra (3,)",
        f"  - {QUERY.removeprefix('bert.')} (24, 24)",
    ]


def test_fewer_layers_than_the_config_says_and_more_are_refused(folder):
    for layers, sign in [(3, "-"), (1, "+")]:
        edit_config(folder, num_hidden_layers=layers)
        lines = refusal(folder, lines=14).splitlines()  # 16 tensors a block, of which 12 are shown
        assert all(
            line.startswith(f"  {sign} encoder.layer.{max(layers - 1, 1)}.") for line in lines[1:-1]
        )
        assert lines[-1] == "  ... and 4 more"


def test_a_tensor_under_two_spellings_is_refused(folder):
    edit_tensors(folder, **{QUERY.removeprefix("bert."): np.zeros((24, 24), np.float32)})
    assert f"hold {QUERY.removeprefix('bert.')} twice" in refusal(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_load_as_float32_with_the_values_they_hold(folder, dtype):
    whole = hub.load(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit_tensors(folder, **{name: tensor.astype(dtype) for name, tensor in tensors.items()})
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
    message = refusal(shards)
    assert message.endswith(
        "names model-00002-of-00003.safetensors, which is not in the folder: fetch it again"
    )


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
    (folder / "vocab.txt").write_text("\n".join([*tiny.SPECIAL, *(f"w{i}" for i in range(96))]))
    message = refusal(folder)
    assert "gives ids up to 100, the embedding has 100 rows" in message and message.endswith(
        "belongs to another checkpoint"
    )


@pytest.mark.parametrize(("said", "expected"), [(7, 7), (10_000, 20), (None, 20)])
def test_the_maximal_length_is_that_of_the_file_within_the_positions(folder, said, expected):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": said}))
    assert hub.load(folder).tokenizer.max_length == expected


# Names


def test_a_name_that_is_nothing_is_one_line(folder, monkeypatch):
    import huggingface_hub

    def offline(name, **_):
        raise OSError("no network\nand more about it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: True)
    assert refusal(folder / "config.json").endswith(
        "give the folder that holds config.json and model.safetensors"
    )
    assert "give a folder, a bundled name (minilm, tiny-bert) or a hub id" in refusal("./nowhere")
    assert refusal("nobody/nothing").endswith("and the hub gave none: no network")
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: False)
    assert refusal("nobody/nothing").endswith(
        "and the hub gave none: it cannot be reached from here"
    )


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_id_is_what_the_hub_gives_or_the_cache_holds(folder, monkeypatch, own_cache, reached):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: reached)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **flags: asked.append((name, flags)) or folder,
    )
    assert tree.digest(hub.load("some/model").params) == tree.digest(hub.load(folder).params)
    asked_for = {
        "allow_patterns": hub.PATTERNS,
        "cache_dir": own_cache / "hub",
        "local_files_only": not reached,
    }
    assert asked == [("some/model", asked_for)]
    assert not any(pattern.endswith((".bin", "*")) for pattern in hub.PATTERNS)


# Runs and exports


@pytest.fixture
def run(folder, tmp_path):
    """A run's folder: the encoder under a classifier, with one checkpoint."""
    model = hub.load(folder)
    head = Classifier(3, "cls", dropout=0.2)
    ready = hub.dataclasses.replace(model, head=head, task="classification", labels=("a", "b", "c"))
    params = tree.map_paths(
        lambda _, leaf: np.full(leaf.shape, 0.5, np.float32), ready.model.shapes()
    ) | {"encoder": model.params["encoder"]}
    labels = tree.label(params, [("head/.*", "head"), (".*", optim.FROZEN)])
    frozen, state = init_state(
        params, labels, optim.by_label({"head": optim.adamw(0.1)}, labels), jax.random.key(0)
    )
    target = tmp_path / "run"
    target.mkdir()
    hub.save_model(target, ready)
    checkpoint.save_frozen(target / "checkpoints", frozen)
    checkpoint.save(target / "checkpoints", state, {}, best=True)
    return target, ready, params


def test_a_run_loads_as_what_was_saved(run):
    target, ready, params = run
    loaded = hub.load(target)
    assert (loaded.config, loaded.head, loaded.task, loaded.labels) == (
        ready.config,
        ready.head,
        ready.task,
        ready.labels,
    )
    assert tree.digest(loaded.params) == tree.digest(params)
    assert loaded.tokenizer.max_length == ready.tokenizer.max_length
    assert (
        loaded.tokenizer.encode(["the film"])[0][0].tolist()
        == ready.tokenizer.encode(["the film"])[0][0].tolist()
    )


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
    (run[0] / "model.json").write_text(content)
    assert str(run[0] / "model.json") in refusal(run[0])


def test_a_run_without_checkpoint_or_with_a_damaged_one_is_refused(run):
    target = run[0]
    for file in (target / "checkpoints" / "frozen" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in refusal(target)
    shutil.rmtree(target / "checkpoints" / "frozen")
    assert "- encoder/" in refusal(target, lines=14)
    shutil.rmtree(target / "checkpoints")
    assert "the run stopped before its first save" in refusal(target)


def test_a_written_folder_loads_as_it_was_and_replaces_the_old_one_whole(folder, tmp_path):
    model = hub.load(folder)
    tensors = layout.to_tensors(model.config, model.params)
    beside, target = tmp_path / "beside", tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    layout.write_folder(beside, layout.write_config(model.config), tensors, {"sub/notes.txt": "é"})
    files.replace_folder(beside, target)
    assert not beside.exists() and not (target / "old").exists()
    assert (target / "sub/notes.txt").read_text("utf-8") == "é"
    assert tree.digest(hub.load(target).params) == tree.digest(model.params)


def test_a_checkpoint_shows_itself_in_a_line(folder, run):
    for shown in (repr(hub.load(folder)), repr(hub.load(run[0]))):
        assert len(shown) < 300 and "bert" in shown and "array" not in shown
    assert "; head: Classifier of 3 classes, pooling cls; task: classification)" in shown


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
    assert issubclass(CheckpointError, AdaptError) and issubclass(AdaptError, ValueError)
