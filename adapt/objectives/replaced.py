"""Replaced tokens (ELECTRA, Clark et al. 2020): a small generator of masked tokens fills what was
masked, and the discriminator says of every token whether it was replaced.

The generator trains beside the discriminator, as ``params["generator"]``. The two share their
embeddings (3.2): the generator has none of its own, unless a folder brings others.
"""

import dataclasses
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt import tree
from adapt.data import masking
from adapt.data.masking import Corruption
from adapt.data.packing import Arrays
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.models import Encoder, EncoderConfig, MaskedLM, Model, ReplacedTokens
from adapt.models.layers import Batch
from adapt.objectives import texts
from adapt.objectives.base import (
    OBJECTIVES,
    Corpus,
    Measure,
    Objective,
    is_exported,
    is_right,
    join_parts,
)
from adapt.objectives.masked import no_masks, special_of
from adapt.options import ObjectiveOptions
from adapt.pretrained import hub
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.training.context import LossContext

# The weight of the discriminator's loss beside the generator's (Clark et al. 2020, 3.2).
DISCRIMINATOR = 50.0
# A generator of a quarter of the discriminator's width is best for most (3.2).
GENERATOR = 4
# What the two share.
SHARED = re.compile(r"encoder/embedding/(token|position|type|norm/.*)")


@dataclasses.dataclass(frozen=True)
class DiscriminatorModel(Model):
    """A model with a generator beside it, whose parameters are ``params["generator"]``; of
    embeddings that are ``shared`` it has none.
    """

    generator: Model | None = None
    shared: bool = True

    def cast(self, dtype: Any) -> "DiscriminatorModel":
        assert self.generator is not None
        generator = self.generator.cast(dtype)
        return dataclasses.replace(super().cast(dtype), generator=generator)  # pyright: ignore

    def init(self, key: jax.Array) -> tree.Tree:
        assert self.generator is not None
        generator = self.generator.init(jax.random.fold_in(key, 2))
        return super().init(key) | {"generator": self.without_shared(generator)}

    def without_shared(self, generator: tree.Tree) -> tree.Tree:
        """The generator's own parameters."""
        if not self.shared:
            return generator
        return tree.select(generator, lambda path: not is_shared(path))

    def with_shared(self, params: tree.Tree) -> tree.Tree:
        """All parameters of the generator, from those of a run."""
        if not self.shared:
            return params["generator"]
        of_both = tree.select({"encoder": params["encoder"]}, is_shared)
        return tree.merge(params["generator"], of_both)


def is_shared(path: str) -> bool:
    """Whether the generator has a parameter of the discriminator, too."""
    return SHARED.fullmatch(path) is not None


class Replaced(Objective):
    """The loss is that of the generator, the mean over the chosen tokens, and 50 times that of the
    discriminator, the mean over all tokens.
    """

    task = "rtd"
    head_name = "head of replaced tokens"
    reads = ("mask_rate", "generator")
    primary_metric = "replaced_accuracy"
    terms: ClassVar = {"masked_loss": 1.0, "replaced_loss": DISCRIMINATOR}
    perplexity_of = "masked_loss"

    def refusal(self, pretrained: Pretrained) -> str:
        reason = no_masks(pretrained)
        if not reason and not is_exported(pretrained, "replaced tokens"):
            return "its family has no head of replaced tokens"
        return reason

    def is_own(self, pretrained: Pretrained) -> bool:
        return isinstance(pretrained.head, ReplacedTokens)

    def new_head(self, pretrained: Pretrained) -> Any:
        return ReplacedTokens(pretrained.config.activation)

    def build(
        self, pretrained: Pretrained, options: ObjectiveOptions, key: jax.Array
    ) -> tuple[Model, tree.Tree]:
        """The discriminator as elsewhere, with the generator of the options' folder, or a new one."""
        model, params = super().build(pretrained, options, key)
        if options.generator is None:
            generator = new_generator(pretrained)
            generator_params = generator.init(jax.random.fold_in(key, 1))
            shared = True
        else:
            loaded = read_generator(pretrained, options.generator)
            generator = loaded.model
            generator_params = loaded.params
            shared = has_shared(loaded.params, params)
        both = DiscriminatorModel(model.encoder, model.head, generator=generator, shared=shared)
        return both, params | {"generator": both.without_shared(generator_params)}

    def new_parts(self, pretrained: Pretrained, options: ObjectiveOptions) -> list[str]:
        lines = super().new_parts(pretrained, options)
        if options.generator is None:
            width = generator_config(pretrained.config).width
            lines.append(f"a new generator of width {width} is trained beside {pretrained.source}")
        return lines

    def companions(self, pretrained: Pretrained, model: Model, params: tree.Tree) -> dict[str, Any]:
        """The generator, as a checkpoint of its own."""
        assert isinstance(model, DiscriminatorModel) and model.generator is not None
        generator = dataclasses.replace(
            pretrained,
            source=f"{pretrained.source} (generator)",
            config=model.generator.encoder.config,
            head=model.generator.head,
            params=model.with_shared(params),
            task="mlm",
        )
        return {"generator": generator}

    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        return texts.read_lines(pretrained, table, seed, special_of(pretrained))

    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        """Masks, as the generator reads them, with a number for each from which its sample is
        drawn; and every token as one that the discriminator judges.
        """
        mask = masking.masked_lm(pretrained, options.mask_rate)

        def corrupt(batch: Arrays, rng: np.random.Generator) -> Arrays:
            masked = mask(batch, rng)
            draws = rng.integers(0, 2**32, len(masked["label"]), np.uint32)
            is_text = batch["segments"].reshape(-1) < len(batch["first"])
            tokens = {
                "label": np.zeros(is_text.size, np.int32),
                "weight": is_text.astype(np.float32),
            }
            return masked | join_parts(masked, tokens) | {"draw": draws}

        return corrupt

    def measures(self, context: LossContext) -> dict[str, Measure]:
        logits_MV = generate(context)
        batch = context.batch
        chosen = len(batch["targets"])
        label = batch["label"][:chosen]
        weight = batch["weight"][:chosen]
        sampled = sample(logits_MV, batch["draw"])
        tokens = fill(batch, sampled)
        is_replaced = tokens != fill(batch, label)
        masked_loss = optax.softmax_cross_entropy_with_integer_labels(logits_MV, label)
        return {
            "masked_loss": (masked_loss, weight),
            "masked_accuracy": (is_right(logits_MV, label), weight),
            **judged(context, tokens, is_replaced, batch["weight"][chosen:]),
        }


def generate(context: LossContext) -> jax.Array:
    """The generator's logits for the chosen tokens, float32 [M, V]."""
    model = context.model
    assert isinstance(model, DiscriminatorModel) and model.generator is not None
    params = model.with_shared(context.params)
    key = context.dropout_key
    if key is not None:
        key = jax.random.fold_in(key, 1)
    hidden = model.generator.head_input(params, None, context.batch, 0, key)
    return model.generator.outputs_of(params, hidden, context.batch, key)


def sample(logits_MV: jax.Array, draw_M: jax.Array) -> jax.Array:
    """A token for each row of logits, int32 [M], by random bits of its own number alone: wherever
    it lies in a batch, and on whatever devices.
    """

    def sample_one(logits: jax.Array, draw: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.key(draw, impl="threefry2x32"), logits)

    return jax.vmap(sample_one)(jax.lax.stop_gradient(logits_MV), draw_M)


def fill(batch: Batch, tokens_M: jax.Array) -> jax.Array:
    """The tokens of a batch, [R, C], with these ones at its targets."""
    tokens_RC = jnp.asarray(batch["tokens"])
    is_target = batch["weight"][: len(batch["targets"])] > 0
    flat_index = jnp.where(is_target, batch["targets"], tokens_RC.size)  # beyond the end: left out
    tokens_M = tokens_M.astype(tokens_RC.dtype)
    filled = tokens_RC.reshape(-1).at[flat_index].set(tokens_M, mode="drop")
    return filled.reshape(tokens_RC.shape)


def judged(
    context: LossContext, tokens_RC: jax.Array, is_replaced_RC: jax.Array, weight_T: jax.Array
) -> dict[str, Measure]:
    """What the discriminator says of these tokens: its loss and its accuracy over all of them, and
    how many of those that it takes for replaced were (precision), and the other way round (recall).
    """
    inputs = {name: array for name, array in context.batch.items() if name != "targets"}
    inputs["tokens"] = tokens_RC
    model = context.model
    hidden = model.head_input(context.params, None, inputs, 0, context.dropout_key)
    logits_T = model.outputs_of(context.params, hidden, inputs, context.dropout_key)[:, 0]
    truth_T = is_replaced_RC.reshape(-1)
    predicted_T = logits_T > 0
    loss_T = optax.sigmoid_binary_cross_entropy(logits_T, truth_T.astype(jnp.float32))
    return {
        "replaced_loss": (loss_T, weight_T),
        "replaced_accuracy": (predicted_T == truth_T, weight_T),
        "replaced_precision": (truth_T, weight_T * predicted_T),
        "replaced_recall": (predicted_T, weight_T * truth_T),
    }


def new_generator(pretrained: Pretrained) -> Model:
    """A generator of the discriminator's depth and a quarter of its width."""
    config = generator_config(pretrained.config)
    return Model(Encoder(config), get_family(config.family).language_model(config, True))


def generator_config(config: EncoderConfig) -> EncoderConfig:
    """As wide as a quarter of the heads are, after the discriminator's embedding."""
    heads = max(round(config.heads / GENERATOR), 1)
    width = heads * config.width_of_head
    embedding = config.embedding_width or config.width
    return dataclasses.replace(
        config,
        heads=heads,
        width=width,
        mlp_width=max(config.mlp_width * heads // config.heads, 1),
        embedding_width=0 if embedding == width else embedding,
    )


def read_generator(pretrained: Pretrained, source: str) -> Pretrained:
    """The generator in a folder. Raises :class:`StrategyError` for one that does not go with the
    discriminator.
    """
    generator = hub.load(source)
    if not isinstance(generator.head, MaskedLM):
        raise StrategyError(
            f"`generator` {source} has no masked-LM head: give a generator, or leave it out"
        )
    if generator.config.vocabulary != pretrained.config.vocabulary:
        raise StrategyError(
            f"`generator` {source} has {generator.config.vocabulary} tokens and "
            f"{pretrained.source} {pretrained.config.vocabulary}: give one of the same tokenizer"
        )
    most = tokenizer_of(pretrained).max_length
    if generator.config.positions < most:
        raise StrategyError(
            f"`generator` {source} has {generator.config.positions} positions: give `max_length` "
            f"{generator.config.positions}"
        )
    return generator


def has_shared(generator: tree.Tree, discriminator: tree.Tree) -> bool:
    """Whether the embeddings of the two are the same, as in Google's checkpoints."""
    own = tree.paths(tree.select({"encoder": generator["encoder"]}, is_shared))
    others = tree.paths(tree.select({"encoder": discriminator["encoder"]}, is_shared))
    if own.keys() != others.keys():
        return False
    return all(np.array_equal(leaf, others[path]) for path, leaf in own.items())


OBJECTIVES["replaced"] = Replaced()
