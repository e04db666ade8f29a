"""Replaced tokens: what the generator puts in, and what a run leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adapt
from adapt import pretraining, tree
from adapt.errors import StrategyError
from adapt.export.exporting import export
from adapt.models import MaskedLM, ReplacedTokens
from adapt.objectives import OBJECTIVES, replaced
from adapt.options import ObjectiveOptions
from adapt.pretrained import hub
from adapt.training.context import LossContext
from tests.helpers import bert_like_files, tiny

WORDS = [*tiny.PLAIN, *tiny.GOOD, *tiny.BAD]
TEXTS = [text for text, _ in tiny.sentences(30)]
OPTIONS = {"steps": 2, "batch_size": 4, "validate_every": 1, "max_length": 16}


def electra(folder, case: str = "electra_discriminator", words: list[str] = WORDS):
    """A recorded checkpoint of one block, with a tokenizer."""
    tiny.checkpoint(folder, case, 1)
    bert_like_files.write_tokenizer(folder, case, words)
    return folder


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory):
    return hub.load(electra(tmp_path_factory.mktemp("electra") / "discriminator"))


def test_a_sample_depends_on_its_own_number_alone():
    logits = jnp.zeros((2, 50))
    draws = np.array([7, 8], np.uint32)
    one, other = np.asarray(replaced.sample(logits, draws))
    again = replaced.sample(jnp.zeros((3, 50)), np.array([9, 8, 7], np.uint32))
    assert (int(again[2]), int(again[1])) == (one, other)
    certain = replaced.sample(jnp.array([[0.0, 90.0, 0.0]]), draws[:1])
    assert certain.tolist() == [1]


def test_a_new_generator_has_a_quarter_of_the_heads_and_the_embedding(discriminator):
    config = replaced.generator_config(discriminator.config)
    assert (config.width, config.heads, config.mlp_width) == (4, 1, 5)
    assert config.embedding_width == 8 and config.layers == discriminator.config.layers
    own = replaced.generator_config(config)
    assert own.width == 4 and own.embedding_width == 8


def test_only_the_generator_s_own_loss_reaches_it_and_both_reach_the_shared_embedding(
    discriminator,
):
    objective = OBJECTIVES["replaced"]
    options = ObjectiveOptions()
    model, params = objective.build(discriminator, options, jax.random.key(0))
    corpus, _ = objective.read(discriminator, pretraining.text_table(TEXTS), options, 0)
    examples = corpus.of_pass(0)
    (batch, *_) = examples.batches(examples.batch_shapes(8, 0, 1), 0, 0)
    batch = objective.corruption(discriminator, options)(batch, np.random.default_rng(0))

    def sums(params):
        measured = objective.measures(LossContext(model, params, batch, jax.random.key(0)))
        terms = [measured[name] for name in ("masked_loss", "replaced_loss")]
        return jnp.stack([(values * weights).sum() for values, weights in terms])

    gradients = tree.paths(jax.jit(jax.jacrev(sums))(params))
    masked = {path for path, leaf in gradients.items() if np.any(leaf[0])}
    judged = {path for path, leaf in gradients.items() if np.any(leaf[1])}
    assert {path.split("/")[0] for path in judged} == {"encoder", "head"}
    of_encoder = {path for path in masked if not path.startswith("generator/")}
    assert of_encoder < masked and all(map(replaced.is_shared, of_encoder))


def test_a_run_trains_both_goes_on_bit_for_bit_and_leaves_two_checkpoints(
    discriminator, tmp_path, caplog
):
    whole = adapt.pretrain(discriminator, TEXTS, out=tmp_path / "whole", **OPTIONS)
    stopped = OPTIONS | {"out": tmp_path / "stopped"}
    half = adapt.pretrain(discriminator, TEXTS, stop_after=1, **stopped)
    assert set(half.pretrained.params) == {"encoder", "head"}
    assert caplog.text.count("a new generator") == 2
    again = adapt.pretrain(discriminator, TEXTS, resume=True, **stopped)
    assert caplog.text.count("a new generator") == 2  # what goes on has none
    assert tree.digest(again.pretrained.params) == tree.digest(whole.pretrained.params)
    names = {"masked_accuracy", "replaced_accuracy", "replaced_precision", "replaced_recall"}
    assert names <= whole.scores["validation"].keys() and again.scores == whole.scores
    # Nothing is taken for replaced yet, so that nothing can be said of the precision.
    assert whole.scores["validation"]["replaced_precision"] is None
    result = whole.result
    assert result["loss"] == pytest.approx(result["masked_loss"] + 50 * result["replaced_loss"])

    loaded = hub.load(tmp_path / "whole")
    assert isinstance(loaded.head, ReplacedTokens)
    assert tree.digest(loaded.params) == tree.digest(whole.pretrained.params)
    generator = hub.load(tmp_path / "whole/generator")
    assert isinstance(generator.head, MaskedLM)
    assert replaced.has_shared(generator.params, loaded.params)
    assert export(loaded, tmp_path / "exported") == "transformers"
    exported = hub.load(tmp_path / "exported")
    assert tree.digest(exported.params) == tree.digest(loaded.params)

    # The generator of the run goes on, with the embeddings that it shares.
    options = ObjectiveOptions(generator=str(tmp_path / "whole/generator"))
    model, params = OBJECTIVES["replaced"].build(loaded, options, jax.random.key(1))
    assert model.shared and "token" not in params["generator"]["encoder"].get("embedding", {})
    tree.check_like(model.with_shared(params), generator.params)


def test_a_generator_that_does_not_go_with_it_is_refused_by_name(discriminator, tmp_path):
    build = OBJECTIVES["replaced"].build
    for folder, named in (
        (discriminator.source, "no masked-LM head"),
        (electra(tmp_path / "small", "electra_generator_untied", WORDS[:10]), "22 tokens"),
    ):
        options = ObjectiveOptions(generator=str(folder))
        with pytest.raises(StrategyError, match=named):
            build(discriminator, options, jax.random.key(0))
    own = ObjectiveOptions(generator=str(electra(tmp_path / "own", "electra_generator")))
    model, params = build(discriminator, own, jax.random.key(0))
    assert not model.shared
    tree.check_like(params["generator"], model.generator.shapes())
