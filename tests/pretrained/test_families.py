"""Every family against outputs that the original library recorded (tests/references/record*.py).

A case compiles one program: the state of every layer and the head's output, of a batch with one text
a row. The same texts packed have the same shapes.
"""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.errors import CheckpointError, ExportError
from adapt.export import layout
from adapt.models import Classifier, MaskedPixels, Model, Span
from adapt.objectives.masked_image import pixels_of_patches
from adapt.pretrained import config_file, families, hub, importing, tensor_names
from tests.helpers import tiny
from tests.helpers.recorded import computed, packed, unpacked

REFERENCES = Path(__file__).parents[1] / "references"
CASES = sorted(folder.name for folder in REFERENCES.iterdir() if (folder / "config.json").exists())
ATTENTIONS = "attentions.npz"


def says(case: str) -> dict:
    return json.loads((REFERENCES / case / "config.json").read_text("utf-8"))


TEXT = [name for name in CASES if "image_size" not in json.dumps(says(name))]


@functools.cache
def load(case: str) -> hub.Pretrained:
    return hub.load(REFERENCES / case)


@functools.cache
def reference(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCES / case / "outputs.npz"))


@functools.cache
def outputs(case: str, is_packed: bool = False) -> dict:
    loaded = load(case)
    batch = unpacked(reference(case))
    found = computed(loaded.model, loaded.params, packed(batch) if is_packed else batch)
    return jax.device_get(found)


def expected_output(case: str) -> np.ndarray | None:
    """What the original head said; None where there is none."""
    recorded = reference(case)
    if isinstance(load(case).head, Span):
        # Ours has no bias: a softmax over positions does not see it.
        bias = hub.read_tensors(REFERENCES / case)["qa_outputs.bias"]
        logits = recorded["span_logits"] - bias[:, None]
        real = np.arange(logits.shape[-1]) < recorded["attention_mask"].sum(1)[:, None]
        return np.where(real[:, None], logits, -np.inf)
    if "reconstruction" in recorded:
        pixels = recorded["reconstruction"].transpose(0, 2, 3, 1)
        patches = pixels_of_patches(pixels, load(case).config.patch_size)
        return np.asarray(patches).reshape(len(pixels), -1, patches.shape[-1])
    return recorded.get("logits", recorded.get("pooler_output"))


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_head_agree_with_the_original_library(case):
    loaded, recorded = load(case), reference(case)
    batch = unpacked(recorded)
    real = batch["segments"] < len(batch["segments"])
    found = outputs(case)
    # A pre-norm family's last recorded state is before the final norm; last_hidden_state is after it.
    expected = [*recorded["hidden_states"][:-1], recorded["last_hidden_state"]]
    assert len(found["states"]) == len(expected) == loaded.config.layers + 1
    for ours, theirs in zip(found["states"], expected, strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)
    theirs = expected_output(case)
    assert theirs is not None or not tree.paths(loaded.params["head"])
    if theirs is not None:
        ours = found["output"]
        if theirs.shape[:2] == real.shape:  # of tokens
            ours = ours.reshape(theirs.shape)[real]
            theirs = theirs[real]
        elif isinstance(loaded.head, MaskedPixels):
            ours = ours[:, loaded.config.leading_tokens :]
        elif isinstance(loaded.head, Span):
            ours = ours[..., : theirs.shape[-1]]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    if "next_sentence" in found:
        theirs = recorded["seq_relationship_logits"]
        np.testing.assert_allclose(found["next_sentence"], theirs, atol=1e-4, rtol=0)


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
    config = config_file.read_config(hf, "memory")
    imported = importing.to_params(config, hf, tensors, "memory")
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


def of_texts(name: str) -> str:
    """The name of a tensor of a classifier of choices in one of texts."""
    name = name.replace("classifier.", "classifier.out_proj.")
    return re.sub(r"^(sequence_summary\.summary|pooler\.dense)\.", "classifier.dense.", name)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_the_file_lands_under_its_own_name(case):
    """Output parity cannot see a key bias (softmax ignores it), so compare the tensors themselves."""
    loaded = load(case)
    tensors = hub.read_tensors(REFERENCES / case)
    prefix = families.get_family(loaded.config.family).prefix
    stored = {}
    for name, tensor in tensors.items():
        stored[tensor_names.without_wrappers(name).removeprefix(prefix)] = tensor
    if loaded.task == "choice":  # which is written as a classifier of texts
        stored = {of_texts(name): tensor for name, tensor in stored.items()}
    written = layout.to_tensors(loaded.config, loaded.params, loaded.head)
    assert written.keys() <= stored.keys()
    tied = getattr(loaded.head, "tied", True)
    for name, tensor in written.items():
        # An untied decoder has a bias of its own, and only that one is used.
        second = name.removesuffix("bias") + "decoder.bias"
        source = name if tied or second not in stored else second
        np.testing.assert_array_equal(tensor, stored[source])


@pytest.mark.parametrize("case", CASES)
def test_dropping_the_head_leaves_the_encoder_as_it_is(case):
    loaded = load(case)
    before = tree.digest(loaded.params)
    encoder = tree.digest({"encoder": loaded.params["encoder"]})
    dropped = tree.drop(loaded.params, "head")
    assert list(dropped) == ["encoder"] and tree.digest(dropped) == encoder
    assert tree.digest(loaded.params) == before


@pytest.mark.parametrize("case", TEXT)
def test_packed_rows_agree_with_one_example_a_row(case):
    batch = unpacked(reference(case))
    place = packed(batch)["first"]
    alone = outputs(case)["states"]
    together = outputs(case, is_packed=True)["states"]
    for ours, packed_states in zip(alone, together, strict=True):
        flat = packed_states.reshape(-1, packed_states.shape[-1])
        for n, length in enumerate(batch["length"]):
            mine = flat[place[n] : place[n] + length]
            np.testing.assert_allclose(mine, ours[n, :length], atol=1e-5, rtol=0)
    head = load(case).head
    if isinstance(head, Classifier | Span):
        ours = outputs(case, is_packed=True)["output"]
        np.testing.assert_allclose(ours, outputs(case)["output"], atol=1e-5, rtol=0)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model: Model, params: tree.Tree, batch: dict) -> jax.Array:
    """The gradient of the state of the first example's fourth token by all embeddings."""
    encoder = model.encoder
    variables = {"params": params["encoder"]}
    x = encoder.apply(variables, batch, method="embed")

    def state(x):
        y = encoder.apply(variables, x, batch, 0, encoder.config.layers, method="run")
        return y[0, 3].sum()

    return jax.grad(state)(x)


def one_causal_case_a_family() -> list[str]:
    found = {}
    for case in TEXT:
        config = config_file.read_config(says(case), case)
        if config.causal:
            found.setdefault(config.family, case)
    return list(found.values())


@pytest.mark.parametrize("case", one_causal_case_a_family())
def test_a_causal_encoder_looks_at_nothing_that_is_ahead(case):
    """The gradient of an early token's state with respect to later embeddings is exactly zero."""
    loaded = load(case)
    grad = np.asarray(gradient(loaded.model, loaded.params, unpacked(reference(case))))
    assert np.abs(grad[0, :4]).min(-1).max() > 0
    assert not np.any(grad[0, 4:]) and not np.any(grad[1:])


def aliases() -> list[tuple[str, str, str]]:
    found = []
    for model_type in families.FAMILIES:
        pairs = families.get_family(model_type).aliases.items()
        found += [(model_type, other, usual) for other, usual in pairs]
    return found


def test_the_families_with_aliases_are_those_of_the_original_library():
    assert {row[0] for row in aliases()} == {"gpt2", "distilbert", "t5", "mt5", "umt5"}


@pytest.mark.parametrize(("model_type", "other", "usual"), aliases())
def test_an_entry_of_config_is_read_under_its_alias_and_a_contradiction_is_refused(
    model_type, other, usual
):
    hf = next(says(name) for name in TEXT if says(name)["model_type"] == model_type)
    config = config_file.read_config(hf, "memory")
    value = hf[usual]
    assert config_file.read_config(hf | {other: value}, "memory") == config
    alone = {name: hf[name] for name in hf if name != usual} | {other: value}
    assert config_file.read_config(alone, "memory") == config
    contradiction = rf"^{other} is {2 * value} and {usual} is {value} in memory/config\.json"
    with pytest.raises(CheckpointError, match=contradiction):
        config_file.read_config(hf | {other: 2 * value}, "memory")


def usual_entries() -> list[tuple[str, str]]:
    """(a recorded case, an entry that its family reads with one value alone), of each family one."""
    cases = {says(name)["model_type"]: name for name in CASES}
    found = []
    for model_type, case in cases.items():
        found += [(case, entry) for entry in families.get_family(model_type).usual]
    return found


@pytest.mark.parametrize(("case", "entry"), usual_entries())
def test_an_entry_that_is_read_with_one_value_alone_is_refused_by_name_and_written(case, entry):
    hf = says(case)
    config = config_file.read_config(hf, "memory")
    usual = families.get_family(config.family).usual[entry]
    assert layout.write_config(config)[entry] == usual
    other = "another" if isinstance(usual, str) else 7
    with pytest.raises(CheckpointError, match=rf"^{entry} is .* in memory/config\.json"):
        config_file.read_config(hf | {entry: other}, "memory")
    if usual is False:
        assert config_file.read_config(hf | {entry: None}, "memory") == config


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
