"""Pairs of sentences, beside masked LM: whether the second follows the first (BERT, Devlin et al.
2019, 3.1), and whether the two are in order (ALBERT, Lan et al. 2020, 3.1).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.data import masking
from adapt.data.masking import Corruption
from adapt.data.packing import Arrays
from adapt.data.tables import Table
from adapt.models import MaskedLM, Model
from adapt.objectives import documents
from adapt.objectives.base import OBJECTIVES, Corpus, Measure, Objective, is_right, join_parts
from adapt.objectives.masked import no_masks
from adapt.options import ObjectiveOptions
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained
from adapt.training import losses
from adapt.training.context import LossContext


class SentencePairs(Objective):
    """The loss is the mean over the chosen tokens, and the mean over pairs beside it.

    ``metric`` begins the names of the second. ``swaps`` says how a pair is changed: its halves change
    places, or the second comes from another document. The label of a changed pair is 1.
    """

    reads = ("mask_rate",)
    reads_documents = True
    perplexity_of = "masked_loss"
    metric: str
    swaps: bool

    @property
    def terms(self) -> Mapping[str, float]:
        return {"masked_loss": 1.0, f"{self.metric}_loss": 1.0}

    @property
    def primary_metric(self) -> str:
        return f"{self.metric}_accuracy"

    def refusal(self, pretrained: Pretrained) -> str:
        reason = no_masks(pretrained)
        if not reason and get_family(pretrained.config.family).pair_objective != self.name:
            return f"its family has no {self.head_name}"
        return reason

    def takes_head(self, pretrained: Pretrained) -> bool:
        return isinstance(pretrained.head, MaskedLM) and pretrained.head.next_sentence

    def new_head(self, pretrained: Pretrained) -> Any:
        """The checkpoint's own masked LM, or a new one, with the second head."""
        config = pretrained.config
        head = pretrained.head
        if not isinstance(head, MaskedLM):
            head = get_family(config.family).language_model(config, True)
        return head.clone(next_sentence=True, pooler=False)

    def init_head(self, pretrained: Pretrained, model: Model, key: jax.Array) -> tree.Tree:
        """What the checkpoint has of the head, such as its masked LM or its pooler, is kept."""
        own = tree.paths(pretrained.params["head"])
        leaves = tree.paths(model.init_head(key))
        return tree.unflatten({path: own.get(path, leaf) for path, leaf in leaves.items()})

    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        return documents.read_pairs(pretrained, table, seed, self.swaps)

    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        mask = masking.masked_lm(pretrained, options.mask_rate)

        def corrupt(batch: Arrays, rng: np.random.Generator) -> Arrays:
            masked = mask(batch, rng)
            return masked | join_parts(masked, batch)

        return corrupt

    def measures(self, context: LossContext) -> dict[str, Measure]:
        batch = context.batch
        chosen = len(batch["targets"])
        label = batch["label"]
        weight = batch["weight"]
        logits_MV = context.outputs
        pair_logits_N2 = next_sentence_logits(context)
        masked_loss = losses.cross_entropy(logits_MV, label[:chosen])
        pair_loss = losses.cross_entropy(pair_logits_N2, label[chosen:])
        return {
            "masked_loss": (masked_loss, weight[:chosen]),
            "masked_accuracy": (is_right(logits_MV, label[:chosen]), weight[:chosen]),
            f"{self.metric}_loss": (pair_loss, weight[chosen:]),
            f"{self.metric}_accuracy": (is_right(pair_logits_N2, label[chosen:]), weight[chosen:]),
        }


def next_sentence_logits(context: LossContext) -> jax.Array:
    """What the second head says of each example, float32 [N, 2]."""
    head: Any = context.model.head
    variables = {"params": context.params["head"]}
    return head.apply(variables, context.hidden, context.batch, method="next_sentence_logits")


class NextSentence(SentencePairs):
    """Half of the second sentences come from other documents."""

    task = "mlm+nsp"
    head_name = "next-sentence head"
    metric = "next_sentence"
    swaps = False


class SentenceOrder(SentencePairs):
    """Half of the pairs are swapped."""

    task = "mlm+sop"
    head_name = "sentence-order head"
    metric = "sentence_order"
    swaps = True


OBJECTIVES["next-sentence"] = NextSentence()
OBJECTIVES["sentence-order"] = SentenceOrder()
