"""pretrain: a checkpoint and plain text in, a checkpoint with its head out, which finetune discards."""

import functools
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from adapt import pretraining, tree
from adapt.cli import finetune, pretrain
from adapt.data import masking, packing
from adapt.errors import DataError, StrategyError
from adapt.models import CausalLM, MaskedLM
from adapt.pretrained import hub
from adapt.ragged import ragged
from adapt.training import losses, optim
from adapt.training.step import init_state, make_step
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

LEARN = {"steps": 30, "batch_size": 4, "validate_every": 15, "learning_rate": 0.01}


@pytest.fixture
def text(tmp_path):
    """Two sentences over and over, with blank lines between: easy to learn by heart."""
    path = tmp_path / "text.txt"
    path.write_text("the film was very good\n\n   \nso dull a plot and a cold end\n" * 20)
    return str(path)


CASES = [
    ("bert_mlm_untied_sharded", MaskedLM, True),
    ("bert_pretraining", MaskedLM, True),
    ("bert_bare_pooler", MaskedLM, False),
    ("gpt2_lm_tied", CausalLM, True),
    ("gpt2_bare", CausalLM, False),
]


@pytest.mark.parametrize(("case", "head", "there"), CASES)
def test_pre_training_learns_and_its_head_is_discarded(
    inputs, text, tmp_path, caplog, case, head, there
):
    source = hub.load(inputs.checkpoint(case))
    result = pretrain.main(
        pretrain.Config(text=text, checkpoint=source.source, **LEARN, out=tmp_path / "pre")
    )
    assert result["loss"] < result["loss_before"] - 0.3
    assert json.loads((tmp_path / "pre/result.json").read_text()) == result
    assert ("has no language-model head: a fresh one" in caplog.text) == (not there)
    files = {
        "config.json",
        "metrics.jsonl",
        "history.png",
        "lineage.json",
        "model.json",
        "tokenizer.json",
    }
    assert {file.name for file in (tmp_path / "pre").iterdir()} == files | {
        "result.json",
        "checkpoints",
    }
    checks = [
        record
        for record in tiny.lines(tmp_path / "pre/metrics.jsonl")
        if "validation_loss" in record
    ]
    assert [record["step"] for record in checks] == [0, 15, 30]
    assert (
        checks[-1]["validation_loss"] == result["loss"]
        and checks[0]["validation_loss"] == result["loss_before"]
    )

    after = hub.load(tmp_path / "pre")
    assert isinstance(after.head, head)
    assert after.head.tied == (case != "bert_mlm_untied_sharded")
    if there:
        tree.check_like(after.params, source.params)
    assert tree.digest(after.params["encoder"]) != tree.digest(source.params["encoder"])

    # What a masked-LM loss never reaches is frozen, and goes through unchanged.
    unused = tree.select(
        after.params["head"], lambda path: path.startswith(("pooler", "next_sentence"))
    )
    assert result["parameters_frozen"] == tree.count(unused)
    assert result["parameters_trained"] == tree.count(after.params) - tree.count(unused)
    assert bool(tree.paths(unused)) == (case == "bert_pretraining")
    assert tree.digest(unused) == tree.digest(
        tree.select(source.params["head"], lambda path: path in tree.paths(unused))
    )

    # The head that was trained here is what fine-tuning discards, and the encoder is what it keeps.
    flags = {
        "checkpoint": str(tmp_path / "pre"),
        "strategy": "frozen",
        "epochs": 1,
        "batch_size": 4,
    }
    adapted = finetune.main(finetune.Config(**flags, **inputs.texts, out=tmp_path / "run"))
    assert adapted["discarded"] == tree.discarded(after.params, "head")
    assert adapted["discarded"]["parameters"] > 0 or case.startswith("gpt2")
    assert tree.digest(hub.load(tmp_path / "run").params["encoder"]) == tree.digest(
        after.params["encoder"]
    )


def test_random_weights_start_from_nothing(inputs, text, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "steps": 1,
        "learning_rate": 0.0,
        "batch_size": 4,
    }
    pretrain.main(pretrain.Config(text=text, **flags, random_weights=True, out=tmp_path / "pre"))
    source, fresh = hub.load(inputs.checkpoint("bert_mlm_tied")), hub.load(tmp_path / "pre")
    tree.check_like(fresh.params, source.params)
    assert tree.digest(fresh.params["encoder"]) != tree.digest(source.params["encoder"])
    assert json.loads((tmp_path / "pre/lineage.json").read_text())["random_weights"] is True


@pytest.fixture(scope="module")
def bert(inputs):
    return hub.load(inputs.checkpoint("bert_mlm_tied"))


def packed(lengths, seed=0):
    """Sentences of given numbers of words, as one packed batch."""
    rng = np.random.default_rng(seed)
    tokens = ragged([[2, *rng.integers(5, 25, length), 3] for length in lengths])
    plan = packing.plan(tokens.lengths, len(tokens), 0, 1)
    return next(
        packing.batches(
            functools.partial(packing.packed, tokens), np.zeros(len(tokens), np.int32), plan, 0, 0
        )
    ), tokens


@given(
    some.lists(some.integers(1, 18), min_size=1, max_size=12),
    some.integers(0, 2**31),
    some.floats(0.01, 0.9),
)
def test_masked_targets(bert, lengths, seed, rate):
    batch, _ = packed(lengths)
    out = masking.masked_lm(bert, rate)(batch, np.random.default_rng(seed))
    count = int(out["weight"].sum())
    chosen, slots = out["targets"][:count], len(batch["first"])
    before, after = batch["tokens"].reshape(-1), out["tokens"].reshape(-1)
    assert (
        len(out["targets"])
        == len(out["label"])
        == len(out["weight"])
        == max(round(rate * before.size), 1)
    )
    assert count == min(max(round(rate * sum(lengths)), 1), len(out["targets"]))
    assert set(out["weight"][:count]) == {1.0} and not out["weight"][count:].any()
    assert len(set(chosen)) == count
    np.testing.assert_array_equal(out["label"][:count], before[chosen])
    assert (before[chosen] >= 5).all()  # neither [CLS] nor [SEP], nor padding
    assert (batch["segments"].reshape(-1)[chosen] < slots).all()
    elsewhere = np.ones(before.size, bool)
    elsewhere[chosen] = False
    np.testing.assert_array_equal(before[elsewhere], after[elsewhere])


def test_eighty_ten_ten_and_new_in_every_epoch(bert):
    mask, plan_tokens = 4, ragged([[2, *range(5, 23), 3]] * 400)
    plan = packing.plan(plan_tokens.lengths, 8, 0, 2)
    corruption = masking.masked_lm(bert, 0.15)
    kinds, masks = np.zeros(3), []
    for epoch in (0, 1):
        stream = pretraining.corrupted_batches(plan_tokens, plan, corruption, 0, epoch, once=True)
        places = []
        for batch in stream:
            count = int(batch["weight"].sum())
            now, label = (
                batch["tokens"].reshape(-1)[batch["targets"][:count]],
                batch["label"][:count],
            )
            kinds += [
                (now == mask).sum(),
                ((now != mask) & (now != label)).sum(),
                (now == label).sum(),
            ]
            places.append(batch["targets"][:count])
        masks.append(np.concatenate(places))
    total = kinds.sum()
    assert total == pytest.approx(0.15 * 18 * 400 * 2, rel=0.02)
    # A random token is now and then [MASK] or the token itself: one in 25 each.
    np.testing.assert_allclose(
        kinds / total, [0.8 + 0.1 / 25, 0.1 * 23 / 25, 0.1 + 0.1 / 25], atol=0.025
    )
    assert not np.array_equal(*masks)
    again = pretraining.corrupted_batches(plan_tokens, plan, corruption, 0, 1, once=True)
    np.testing.assert_array_equal(
        masks[1], np.concatenate([b["targets"][: int(b["weight"].sum())] for b in again])
    )


def test_causal_targets_are_the_next_tokens():
    batch, tokens = packed([3, 7, 1])
    out = masking.causal_lm(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(out["tokens"], batch["tokens"])
    count = int(out["weight"].sum())
    assert count == sum(len(tokens[i]) - 1 for i in range(len(tokens)))
    flat, owner = batch["tokens"].reshape(-1), batch["segments"].reshape(-1)
    for place, label in zip(out["targets"][:count], out["label"][:count], strict=True):
        assert label == flat[place + 1] and owner[place] == owner[place + 1]


def test_only_masked_positions_go_through_the_vocabulary_product(bert):
    batch = masking.masked_lm(bert, 0.15)(packed([9, 4, 12, 7, 16, 3])[0], np.random.default_rng(0))
    rows, targets = batch["tokens"].size, len(batch["targets"])
    assert (rows, targets) == (64, 10)
    labels = tree.label(bert.params, [(".*", "all")])
    tx = optim.by_label({"all": optim.adamw(1e-3)}, labels)
    frozen, state = init_state(bert.params, labels, tx, jax.random.key(0))
    program = (
        make_step(bert.model, losses.cross_entropy, tx).suffix.lower(frozen, state, batch).as_text()
    )
    assert f"tensor<{targets}x{bert.config.vocabulary}xf32>" in program
    assert f"tensor<{rows}x{bert.config.vocabulary}xf32>" not in program


def test_long_lines_become_several_examples_and_nothing_is_lost(bert):
    words = " ".join(str(word) for word in np.random.default_rng(0).choice(tiny.PLAIN, 50))
    pieces = masking.split_into_pieces(bert.tokenizer.cut_to(12), [words, "good"])
    assert max(map(len, pieces)) <= 12 and all(piece[0] == 2 and piece[-1] == 3 for piece in pieces)
    whole = [bert.tokenizer.backend.token_to_id(word) for word in words.split()]
    assert [token for piece in pieces[:-1] for token in piece[1:-1]] == whole


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"steps": 0}, "`steps` 0 must be at least 1"),
        ({"batch_size": 0}, "`batch_size` 0 must be at least 1"),
        ({"mask_rate": 1.0}, "between 0 and 1"),
        ({"max_length": 2}, "`max_length` 2 must be at least 3"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0 must be at least 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan must be at least 0"),
    ],
)
def test_flags_out_of_range(inputs, text, tmp_path, flags, words):
    with pytest.raises(StrategyError, match=words):
        pretrain.main(
            pretrain.Config(
                text=text,
                **{"checkpoint": inputs.checkpoint("bert_mlm_tied")} | flags,
                out=tmp_path / "pre",
            )
        )
    assert not (tmp_path / "pre").exists()


def test_text_that_teaches_nothing(inputs, tmp_path):
    for number, words in enumerate(
        ("good\n", "\n \n", "Ж Щ\nЮ Я\nЦ Ч\n")
    ):  # one line; none; unknown words alone
        (tmp_path / "text.txt").write_text(words)
        with pytest.raises(DataError, match="at least 2"):
            pretrain.main(
                pretrain.Config(
                    text=str(tmp_path / "text.txt"),
                    checkpoint=inputs.checkpoint("bert_mlm_tied"),
                    out=tmp_path / str(number),
                )
            )
        assert not (tmp_path / str(number)).exists()


def test_images_are_no_text(inputs, text, tmp_path):
    with pytest.raises(StrategyError, match="no text encoder"):
        pretrain.main(
            pretrain.Config(
                text=text, checkpoint=inputs.checkpoint("vit_classifier"), out=tmp_path / "pre"
            )
        )
