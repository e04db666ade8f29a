"""An encoder that the package mteb evaluates, by the protocol of its version 2.

    import mteb
    from adapt.mteb import Encoder

    results = mteb.evaluate(Encoder("minilm"), mteb.get_tasks(tasks=["Banking77Classification"]))

The package is an optional extra, which brings torch; nothing here imports it before it asks for the
model's description.
"""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import DataError, StrategyError, first_line
from adapt.features import encode, extractor, vector_settings
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained


class Encoder:
    """A text encoder as mteb's ``EncoderProtocol`` has it.

        Encoder("minilm")
        Encoder("e5-small", prompts={"query": "query: ", "document": "passage: "})

    ``pretrained`` is what :func:`adapt.load` gives, or a name for it; ``pooling`` and ``normalize``
    are those of :func:`adapt.encode`. ``prompts`` are put before texts, by default the folder's
    own: the one of the task's name and the kind of the text ("NFCorpus-query"), or of the task's
    name, of its type ("Retrieval") and the kind, of its type, or of the kind, "query" or
    "document"; the first of these that is there. ``name`` is what results are filed under, by
    default that of the checkpoint.

    Raises :class:`StrategyError` for a pooling that the checkpoint does not have, and where it
    encodes images.
    """

    def __init__(
        self,
        pretrained: Pretrained | str | Path,
        pooling: str | None = None,
        normalize: bool = True,
        prompts: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        pretrained = hub.loaded(pretrained)
        hub.check_inputs(pretrained, image_column=None)
        settings = vector_settings(pretrained, pooling, normalize, prompt="")
        extractor(pretrained, settings.pooling)  # refuses what is not there
        self.pretrained = pretrained
        self.asked = pooling
        self.vectors = settings
        self.pooling = settings.pooling
        self.normalize = normalize
        self.prompts = own_prompts(pretrained) if prompts is None else dict(prompts)
        if any(self.prompts.values()) and not pretrained.embedding.pools_prompt:
            raise StrategyError(
                f"{pretrained.source} leaves the tokens of a prompt out of its pooling, which adapt "
                "does not do: give `prompts` {}"
            )
        self.name = name or Path(pretrained.source).name

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """The vectors of the texts of all batches, float32 [N, D], in their order.

        ``inputs`` is mteb's DataLoader: batches whose "text" is a list. The sizes of batches, and
        whatever else is in ``kwargs``, change nothing: texts are packed by their lengths here.
        """
        prompt = self.prompt(task_metadata, prompt_type)
        texts = []
        for batch in inputs:
            if "text" not in batch:
                raise DataError(
                    f"{task_metadata.name} has {', '.join(batch)} and no text, which this encodes"
                )
            texts += [prompt + text for text in batch["text"]]
        # The prompt is there already: none of the folder's own comes before it.
        return encode(
            self.pretrained, texts, pooling=self.asked, normalize=self.normalize, prompt=""
        )

    def prompt(self, task_metadata: Any, prompt_type: Any) -> str:
        """What is put before the texts of a task."""
        kind = "" if prompt_type is None else str(prompt_type.value)
        for key in (task_metadata.name, task_metadata.type):
            for candidate in (f"{key}-{kind}", key):
                if candidate in self.prompts:
                    return self.prompts[candidate]
        return self.prompts.get(kind, "")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosines [N, M] of vectors [N, D] and [M, D], as a tensor of torch."""
        return imported("similarity_functions").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosines [N] of vectors [N, D] and [N, D], pair by pair, as a tensor of torch."""
        return imported("similarity_functions").pairwise_cos_sim(embeddings1, embeddings2)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's ``ModelMeta``. Its revision is a digest of the weights, so that results of other
        weights are never taken for these.

        Raises :class:`StrategyError` where the package is not installed.
        """
        model_meta = imported("models.model_meta")
        return model_meta.ModelMeta.create_empty(
            {
                "name": f"adapt/{self.name}",
                "revision": tree.digest(self.pretrained.params["encoder"])[:16],
                "n_parameters": tree.count(self.pretrained.params["encoder"]),
                "max_tokens": hub.tokenizer_of(self.pretrained).max_length,
                "embed_dim": self.vectors.width(self.pretrained),
                "framework": ["JAX"],
                "similarity_fn_name": model_meta.ScoringFunction.COSINE,
                "use_instructions": bool(self.prompts),
                "experiment_kwargs": self.settings,
            }
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the vectors: results of other settings are filed apart."""
        settings: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize}
        if self.prompts:
            settings["prompts"] = self.prompts
        return settings


def own_prompts(pretrained: Pretrained) -> dict[str, str]:
    """The prompts of a checkpoint's folder by the names that mteb has: sentence-transformers takes
    passage or corpus where there is no document, and the default prompt for texts of no kind.
    """
    own = pretrained.embedding
    prompts = dict(own.prompts)
    for name in ("passage", "corpus"):
        if name in own.prompts:
            prompts.setdefault("document", own.prompts[name])
    if own.default_prompt is not None:
        prompts.setdefault("", own.prompts.get(own.default_prompt, ""))
    return prompts


def imported(module: str) -> Any:
    """A module of mteb. Raises :class:`StrategyError` where the package is not installed."""
    try:
        return importlib.import_module(f"mteb.{module}")
    except ImportError as error:
        raise StrategyError(
            f"Encoder needs the package mteb ({first_line(error)}): pip install mteb"
        ) from None
