"""Causal LM: every token is predicted from those before it (GPT-2 and other decoders)."""

from adapt.data import masking
from adapt.data.masking import Corruption
from adapt.data.tables import Table
from adapt.objectives import texts
from adapt.objectives.base import OBJECTIVES, Corpus
from adapt.objectives.texts import TokenPrediction
from adapt.options import ObjectiveOptions
from adapt.pretrained.hub import Pretrained


class Causal(TokenPrediction):
    """The loss is the mean over all tokens but the first of each example."""

    task = "clm"

    def refusal(self, pretrained: Pretrained) -> str:
        reason = texts.without_tokenizer(pretrained)
        if not reason and not pretrained.config.causal:
            return "its tokens attend to those after them, and so to what is to be predicted"
        return reason

    def is_own(self, pretrained: Pretrained) -> bool:
        return pretrained.config.causal

    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        return texts.read_lines(pretrained, table, seed)

    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        return masking.causal_lm


OBJECTIVES["causal"] = Causal()
