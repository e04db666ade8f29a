"""Every family against outputs that the original library recorded (tests/references/record.py)."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.errors import CheckpointError, ExportError
from adapt.export import layout
from adapt.models import MaskedLM, Model
from adapt.pretrained import families, hub, tensor_names
from tests.helpers import tiny

REFERENCES = Path(__file__).parents[1] / "references"
CASES = sorted(folder.name for folder in REFERENCES.iterdir() if folder.is_dir())
ATTENTIONS = "attentions.npz"
TEXT = [
    name
    for name in CASES
    if (REFERENCES / name / "tokens").exists()
    or "image_size" not in (REFERENCES / name / "config.json").read_text()
]

hidden_states = jax.jit(Model.hidden_states, static_argnums=0)


@functools.cache
def load(case: str) -> hub.Pretrained:
    return hub.load(REFERENCES / case)


@functools.cache
def reference(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCES / case / "outputs.npz"))


def unpacked(recorded) -> dict[str, np.ndarray]:
    """The recorded inputs as a batch with one example a row."""
    if "pixel_values" in recorded:
        pixels = recorded["pixel_values"].transpose(0, 2, 3, 1)
        rows, tokens = len(pixels), recorded["last_hidden_state"].shape[1]
        lengths = np.full(rows, tokens, np.int32)
        inputs = {"pixels": pixels}
    else:
        ids = recorded["input_ids"].astype(np.int32)
        rows, tokens = ids.shape
        lengths = recorded["attention_mask"].sum(1).astype(np.int32)
        inputs = {"tokens": ids, "positions": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1))}
        if "token_type_ids" in recorded:
            inputs["types"] = recorded["token_type_ids"].astype(np.int32)
    real = np.arange(tokens) < lengths[:, None]
    segments = np.where(real, np.arange(rows)[:, None], rows).astype(np.int32)
    return inputs | {
        "segments": segments,
        "first": np.arange(rows, dtype=np.int32) * tokens,
        "length": lengths,
    }


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_head_agree_with_the_original_library(case):
    loaded, recorded = load(case), reference(case)
    batch, model = unpacked(recorded), loaded.model
    real = batch["segments"] < len(batch["segments"])
    states = hidden_states(model, loaded.params, batch)
    # ViT's last recorded state is before the final norm; last_hidden_state is after it in every family.
    expected = [*recorded["hidden_states"][:-1], recorded["last_hidden_state"]]
    assert len(states) == len(expected) == loaded.config.layers + 1
    for ours, theirs in zip(states, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=1e-4, rtol=0)
    output = np.asarray(jax.jit(model.apply)(loaded.params, batch))
    assert {"logits", "pooler_output"} & set(recorded) or not tree.paths(loaded.params["head"])
    if "logits" in recorded:
        theirs = recorded["logits"]
        if theirs.ndim == 3:  # a tagger's are flat
            output = output.reshape(theirs.shape)
        np.testing.assert_allclose(
            output.reshape(theirs.shape)[real] if theirs.ndim == 3 else output,
            theirs[real] if theirs.ndim == 3 else theirs,
            atol=1e-4,
            rtol=0,
        )
    elif "pooler_output" in recorded:
        np.testing.assert_allclose(output, recorded["pooler_output"], atol=1e-4, rtol=0)
    if isinstance(loaded.head, MaskedLM) and loaded.head.next_sentence:
        answer = jax.jit(functools.partial(loaded.head.apply, method="next_sentence_logits"))
        ours = answer({"params": loaded.params["head"]}, states[-1], batch)
        np.testing.assert_allclose(ours, recorded["seq_relationship_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "case", [name for name in CASES if (REFERENCES / name / ATTENTIONS).exists()]
)
def test_attention_maps_are_those_of_the_original_library(case):
    loaded = load(case)
    batch = unpacked(reference(case))
    real = batch["segments"] < len(batch["segments"])
    of_pairs = real[:, None, :, None] & real[:, None, None, :]
    theirs = np.load(REFERENCES / case / ATTENTIONS)["attentions"]
    maps = jax.jit(Model.attention_maps, static_argnums=0)(loaded.model, loaded.params, batch)
    assert len(maps) == len(theirs) == loaded.config.layers
    for ours, expected in zip(maps, theirs, strict=True):
        assert ours.shape == expected.shape
        difference = np.abs(np.asarray(ours) - expected)
        assert np.where(of_pairs, difference, 0).max() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_table_writes_what_it_read(case):
    """Import, export, import again: the same tree, bit for bit, names and values of every leaf."""
    loaded = load(case)
    hf = layout.write_config(loaded.config, loaded.head) | {
        "architectures": hub.read_json(REFERENCES / case, "config.json")["architectures"]
    }
    tensors = layout.to_tensors(loaded.config, loaded.params, loaded.head)
    config = families.read_config(hf, "memory")
    imported = families.to_params(config, hf, tensors, "memory")
    assert (config, imported.head) == (loaded.config, loaded.head)
    assert not imported.unread and not imported.stripped
    tree.check_like(imported.params, loaded.params)
    assert tree.digest(imported.params) == tree.digest(loaded.params)


def test_a_leaf_that_no_tensor_takes_is_refused():
    loaded = load("bert_bare_pooler")
    params = tree.graft(
        loaded.params, "encoder/block_00/attention/query/lora", np.zeros(3, np.float32)
    )
    with pytest.raises(
        ExportError, match="bert has no tensor for encoder/block_00/attention/query/lora"
    ):
        layout.to_tensors(loaded.config, params)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_the_file_lands_under_its_own_name(case):
    """Output parity cannot see a key bias (softmax ignores it), so compare the tensors themselves."""
    loaded = load(case)
    tensors = hub.read_tensors(REFERENCES / case)
    prefix = families.get_family(loaded.config.family).prefix
    stored = {}
    for name, tensor in tensors.items():
        stored[tensor_names.without_wrappers(name).removeprefix(prefix)] = tensor
    written = layout.to_tensors(loaded.config, loaded.params, loaded.head)
    assert written.keys() <= stored.keys()
    untied_bias = "cls.predictions.bias" if "cls.predictions.decoder.weight" in written else None
    for name, tensor in written.items():
        source = "cls.predictions.decoder.bias" if name == untied_bias else name
        np.testing.assert_array_equal(tensor, stored[source])


@pytest.mark.parametrize("case", CASES)
def test_dropping_the_head_leaves_the_encoder_bit_for_bit(case):
    loaded, recorded = load(case), reference(case)
    batch, before = unpacked(recorded), tree.digest(loaded.params)
    whole = hidden_states(loaded.model, loaded.params, batch)
    dropped = tree.drop(loaded.params, "head")
    assert list(dropped) == ["encoder"] and tree.digest(loaded.params) == before
    for a, b in zip(whole, hidden_states(loaded.model, dropped, batch), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("case", TEXT)
def test_packed_rows_agree_with_one_example_a_row(case):
    loaded, recorded = load(case), reference(case)
    batch = unpacked(recorded)
    rows, width = batch["tokens"].shape
    packed = {
        name: np.zeros((2, 2 * width), np.int32) for name in batch if np.ndim(batch[name]) == 2
    }
    packed["segments"] += rows
    first, at = (
        np.zeros(rows, np.int32),
        [5, 0],
    )  # the first example starts in mid-row, the others share rows
    for n, length in enumerate(batch["length"]):
        row = n % 2
        for name, array in packed.items():
            array[row, at[row] : at[row] + length] = batch[name][n, :length]
        first[n], at[row] = row * 2 * width + at[row], at[row] + length
    packed |= {"first": first, "length": batch["length"]}
    alone, together = (
        np.asarray(hidden_states(loaded.model, loaded.params, b)[-1]) for b in (batch, packed)
    )
    for n, length in enumerate(batch["length"]):
        flat = together.reshape(-1, together.shape[-1])[first[n] : first[n] + length]
        np.testing.assert_allclose(flat, alone[n, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", [*(n for n in TEXT if n.startswith("gpt2")), "llama_lm_untied", "gemma3_text_lm_tied"]
)
def test_a_decoder_is_causal(name):
    """The gradient of an early token's state with respect to later embeddings is exactly zero."""
    loaded, recorded = load(name), reference(name)
    batch, variables = unpacked(recorded), {"params": loaded.params["encoder"]}
    encoder = loaded.model.encoder

    @jax.jit
    def gradient(variables, batch):
        x = encoder.apply(variables, batch, method="embed")
        run = lambda x: encoder.apply(variables, x, batch, 0, loaded.config.layers, method="run")
        return jax.grad(lambda x: run(x)[0, 3].sum())(x)

    grad = gradient(variables, batch)
    assert (
        np.abs(grad[0, :4]).min(-1).max() > 0 and not np.any(grad[0, 4:]) and not np.any(grad[1:])
    )


def test_a_family_of_one_s_own_is_registered_under_the_model_type(tmp_path, monkeypatch):
    """A Family, or where it is: here BERT's under another name."""
    folder = tiny.checkpoint(tmp_path / "other", "bert_mlm_tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "other"}))
    with pytest.raises(CheckpointError, match="unknown architecture 'other'"):
        hub.load(folder)
    for family in ("adapt.pretrained.families.bert", families.get_family("bert")):
        monkeypatch.setitem(families.FAMILIES, "other", family)
        assert hub.load(folder).config.family == "other"
