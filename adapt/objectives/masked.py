"""Masked LM (Devlin et al. 2019, 3.1): some tokens are hidden, and predicted from those around."""

from typing import Any

from adapt.data import masking
from adapt.data.masking import Corruption
from adapt.data.tables import Table
from adapt.models import MaskedLM, ReplacedTokens
from adapt.objectives import texts
from adapt.objectives.base import OBJECTIVES, Corpus
from adapt.objectives.texts import TokenPrediction
from adapt.options import ObjectiveOptions
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of

# What a masked-LM loss never reaches.
UNTRAINED = r"head/(pooler|next_sentence)/.*"


class Masked(TokenPrediction):
    """The loss is the mean over the chosen tokens."""

    task = "mlm"
    reads = ("mask_rate",)

    def refusal(self, pretrained: Pretrained) -> str:
        return no_masks(pretrained)

    def is_own(self, pretrained: Pretrained) -> bool:
        if isinstance(pretrained.head, ReplacedTokens):
            return False
        return not pretrained.config.is_image and not pretrained.config.causal

    def untrained_pattern(self, head: Any) -> str:
        return UNTRAINED if head.next_sentence or head.pooler else ""

    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        return texts.read_lines(pretrained, table, seed, special_of(pretrained))

    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        return masking.masked_lm(pretrained, options.mask_rate)


def no_masks(pretrained: Pretrained) -> str:
    """Why tokens can't be masked for a checkpoint; "" where they can."""
    reason = texts.without_tokenizer(pretrained)
    if reason:
        return reason
    if pretrained.config.causal:
        return "its tokens do not attend to those after them"
    head = get_family(pretrained.config.family).language_model(pretrained.config, True)
    if not isinstance(head, MaskedLM):
        return "its family has no masked-LM head"
    if masking.find_mask_id(tokenizer_of(pretrained)) is None:
        return (
            "its tokenizer has no [MASK] token, so nothing can be masked: give a checkpoint that was "
            "trained so (T5 was not)"
        )
    return ""


def special_of(pretrained: Pretrained) -> set[int]:
    """The ids that are never a target of masking, as [UNK] is not."""
    return set(masking.special_ids(tokenizer_of(pretrained)).tolist())


OBJECTIVES["masked"] = Masked()
