"""The other side of the benchmark: what users can pick instead, inside an interpreter of its own.

``experiments/benchmark/benchmark.py`` starts this file with the interpreter that has the peer
installed and talks to it in JSON lines on stdin and stdout. It imports the standard library and,
once asked to, its peer: never ``adapt``. Each side is written as its own documentation would have
it, with the same data, batch, dropout, AdamW, weight decay and clipping.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

PRODUCTS = 20  # of matrices on a device, between two looks at it
WIDTH = 64  # keras-hub: tokens an example, cut or padded
KERAS_LIBRARIES = ("keras-hub", "keras", "jax")
TORCH_LIBRARIES = ("torch", "transformers", "sentence-transformers")


def serve(sides: Mapping[str, Callable[..., Any]]) -> None:
    """Answer jobs from stdin until it ends: ``{"job": "start", "side": ..., "cores": ..., ...}``,
    then methods of it.

    Whatever libraries print goes to stderr. An exception becomes the answer ``{"error": ...}``.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        job = request.pop("job")
        try:
            if job == "start":
                keep_to(request["cores"])
                side = sides[request.pop("side")](**request)
                answer = {"versions": side.versions}
            else:
                answer = getattr(side, job)(**request)
        except (
            Exception
        ) as fault:  # of whatever library: the benchmark gets it as the answer, the log all of it
            traceback.print_exc()
            answer = {"error": f"{type(fault).__name__}: {fault}"}
        print(json.dumps(answer), file=answers, flush=True)


def keep_to(cores: int) -> None:
    """Run on the first ``cores`` of the cores that this process may use; before any library counts
    them.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)


def versions(names: tuple[str, ...]) -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {
        name: importlib.metadata.version(name) for name in names
    }


class Torch:
    """transformers and torch: AutoModel, mean pooling and a linear classifier; and
    sentence-transformers' ``encode``.
    """

    def __init__(
        self,
        checkpoint: str,
        task: str,
        batch_size: int,
        cores: int,
        seed: int,
        learning: dict[str, float],
    ):
        import torch
        import transformers

        self.versions, self.torch, self.batch_size = versions(TORCH_LIBRARIES), torch, batch_size
        torch.set_num_threads(cores)
        torch.manual_seed(seed)
        with open(task, encoding="utf-8") as file:
            content = json.load(file)
        self.checkpoint, self.texts, self.labels = checkpoint, content["texts"], content["labels"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.ids = self.tokenizer(
            content["train"],
            truncation=True,
            max_length=content["max_length"],
            return_attention_mask=False,
        )["input_ids"]
        self.encoder = transformers.AutoModel.from_pretrained(checkpoint, add_pooling_layer=False)
        config = self.encoder.config
        self.head = torch.nn.Linear(config.hidden_size, content["classes"])
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.learning = learning
        self.strategy("full")
        self.sentences: Any = None

    def strategy(self, name: str) -> dict[str, Any]:
        """Train by this strategy from now on: what is frozen needs no gradient, and no dropout."""
        torch = self.torch
        learning = self.learning
        layers = self.encoder.encoder.layer
        kept = len(layers) if name == "full" else int(name[4:]) if name.startswith("top:") else 0
        self.still = (
            [] if name == "full" else [self.encoder.embeddings, *layers[: len(layers) - kept]]
        )
        self.encoder.requires_grad_(True)
        for module in self.still:
            module.requires_grad_(False)
        named = [*self.encoder.named_parameters(), *self.head.named_parameters()]
        still = [weight for name, weight in named if name.endswith("bias") or "LayerNorm" in name]
        decayed = [
            weight for name, weight in named if not (name.endswith("bias") or "LayerNorm" in name)
        ]
        still, decayed = (
            [weight for weight in part if weight.requires_grad] for part in (still, decayed)
        )
        groups = [
            {"params": decayed, "weight_decay": learning["decay"]},
            {"params": still, "weight_decay": 0.0},
        ]
        self.weights = [*decayed, *still]
        self.clip = learning["clip"]
        # The default of transformers' Trainer, and faster than the loop over parameters.
        self.optimizer = torch.optim.AdamW(groups, lr=learning["rate"], fused=True)
        return {}

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """Train on the examples ``order``, each batch padded to its longest: pure steps, tokens
        were made before.
        """
        torch, functional = self.torch, self.torch.nn.functional
        self.encoder.train()
        self.dropout.train()
        for module in self.still:
            module.eval()
        loss = torch.zeros(())
        started = time.perf_counter()
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [self.ids[i] for i in index]}, return_tensors="pt"
            )
            mask = batch["attention_mask"]
            hidden = self.encoder(
                input_ids=batch["input_ids"], attention_mask=mask
            ).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            loss = functional.cross_entropy(
                self.head(self.dropout(pooled)), torch.tensor([self.labels[i] for i in index])
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {
            "examples": len(order),
            "seconds": time.perf_counter() - started,
            "loss": float(loss.detach()),
        }

    def extract(self, index: list[int]) -> dict[str, float]:
        """Encode the texts ``index`` with sentence-transformers, tokenization included."""
        if self.sentences is None:
            import sentence_transformers

            self.sentences = sentence_transformers.SentenceTransformer(
                self.checkpoint, device="cpu"
            )
        texts = [self.texts[i] for i in index]
        started = time.perf_counter()
        features = self.sentences.encode(texts, batch_size=self.batch_size, show_progress_bar=False)
        return {"examples": len(features), "seconds": time.perf_counter() - started}

    def probe(self, features: str) -> dict[str, float]:
        """Fit scikit-learn's logistic regression on features float32 [N, D] of the training texts,
        read from a file.
        """
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        x = np.fromfile(features, np.float32).reshape(len(self.labels), -1)
        started = time.perf_counter()
        LogisticRegression(max_iter=1000).fit(x, self.labels)
        return {"examples": len(x), "seconds": time.perf_counter() - started}

    def rate(self, sizes: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
        """float32 matrix products: GFLOP/s of each repetition, by size."""
        found: dict[str, list[float]] = {}
        with self.torch.no_grad():
            for size in sizes:
                a = self.torch.randn(size, size)
                found[str(size)] = matmul_rates(lambda a=a: a @ a, size, repeats)
        return {"rates": found}


class Device:
    """One step on the accelerator that torch finds: AutoModel of a shape, random weights, a linear
    head, bfloat16 by autocast.
    """

    def __init__(
        self,
        shape: dict[str, Any],
        pooling: str,
        classes: int,
        batch_size: int,
        tokens: int,
        still: int,
        cores: int,
        seed: int,
        learning: dict[str, float],
        compile: bool,
    ):
        import torch
        import transformers

        self.where = "cuda" if torch.cuda.is_available() else "cpu"
        name = torch.cuda.get_device_name() if self.where == "cuda" else "cpu"
        self.versions, self.torch, self.pooling = (
            versions(TORCH_LIBRARIES[:2]) | {"device": name},
            torch,
            pooling,
        )
        torch.set_num_threads(cores)
        torch.manual_seed(seed)
        kind = shape.pop("model_type")
        config = transformers.AutoConfig.for_model(kind, **shape)
        config.use_cache = False
        bare = {} if kind == "gpt2" else {"add_pooling_layer": False}
        self.encoder = transformers.AutoModel.from_config(
            config, attn_implementation="sdpa", **bare
        ).to(self.where)
        self.head = torch.nn.Linear(config.hidden_size, classes).to(self.where)
        self.dropout = torch.nn.Dropout(0.1 if kind != "vit" else 0.0)
        layers = config.num_hidden_layers
        blocks = next(
            part
            for part in self.encoder.modules()
            if isinstance(part, torch.nn.ModuleList) and len(part) == layers
        )
        self.encoder.train()
        if still:  # what is frozen needs no gradient, and no dropout
            self.encoder.requires_grad_(False).eval()
            for block in blocks[still - 1 :]:
                block.requires_grad_(True).train()
            final = [
                part for part in self.encoder.children() if isinstance(part, torch.nn.LayerNorm)
            ]
            for norm in final if still <= layers else []:
                norm.requires_grad_(True)
        self.weights = [
            weight
            for weight in (*self.encoder.parameters(), *self.head.parameters())
            if weight.requires_grad
        ]
        groups = [
            {
                "params": [weight for weight in self.weights if weight.ndim > 1],
                "weight_decay": learning["decay"],
            },
            {"params": [weight for weight in self.weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        self.clip, self.optimizer = (
            learning["clip"],
            torch.optim.AdamW(groups, lr=learning["rate"], fused=True),
        )
        self.batches = []
        for _ in range(2):
            if kind == "vit":
                size = config.image_size
                inputs = {"pixel_values": torch.randn(batch_size, config.num_channels, size, size)}
            else:
                inputs = {"input_ids": torch.randint(1, config.vocab_size, (batch_size, tokens))}
            self.batches.append((inputs, torch.randint(classes, (batch_size,))))
        if compile:
            self.encoder.compile()

    def train(self, steps: int) -> dict[str, float]:
        """Whole steps, until the device has done them; the batches are sent in each."""
        torch = self.torch
        examples = 0
        started = time.perf_counter()
        for number in range(steps):
            inputs, labels = self.batches[number % 2]
            inputs = {
                name: value.to(self.where, non_blocking=True) for name, value in inputs.items()
            }
            labels = labels.to(self.where, non_blocking=True)
            with torch.autocast(self.where, torch.bfloat16):
                hidden = self.encoder(**inputs).last_hidden_state
                pooled = hidden[:, 0] if self.pooling == "cls" else hidden.mean(1)
                loss = torch.nn.functional.cross_entropy(self.head(self.dropout(pooled)), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            examples += len(labels)
        last = float(loss.detach())
        return {"examples": examples, "seconds": time.perf_counter() - started, "loss": last}

    def peak(self) -> dict[str, int | None]:
        """The most bytes of the device in use at once since the start; None on a CPU."""
        return {"bytes": self.torch.cuda.max_memory_allocated() if self.where == "cuda" else None}

    def rate(self, repeats: int) -> dict[str, float]:
        """FLOP/s of bfloat16 matrix products, the fastest of two sizes, many between two looks at
        the device.
        """
        found = []
        with self.torch.no_grad():
            for size in rate_sizes(self.where == "cuda"):
                a = (
                    self.torch.randn(size, size, device=self.where, dtype=self.torch.bfloat16)
                    / size**0.5
                )

                def many(a: Any = a) -> None:
                    b = a
                    for _ in range(PRODUCTS):
                        b = b @ a
                    float(b[0, 0])

                found.append(max(matmul_rates(many, size, repeats)) * 1e9 * PRODUCTS)
        return {"flops": max(found)}


class Keras:
    """keras-hub on the JAX backend: BertTextClassifier of the checkpoint's shape, fixed width,
    random weights.
    """

    def __init__(
        self,
        checkpoint: str,
        task: str,
        batch_size: int,
        cores: int,
        seed: int,
        learning: dict[str, float],
    ):
        os.environ["KERAS_BACKEND"] = "jax"
        import keras
        import keras_hub
        import numpy as np

        self.versions, self.np, self.batch_size = versions(KERAS_LIBRARIES), np, batch_size
        keras.utils.set_random_seed(seed)
        with open(task, encoding="utf-8") as file:
            content = json.load(file)
        with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
            shape = json.load(file)
        self.tokens = np.zeros((len(content["ids"]), WIDTH), np.int32)
        for row, ids in zip(self.tokens, content["ids"], strict=True):
            row[: len(ids[:WIDTH])] = ids[:WIDTH]
        self.lengths = np.array([min(len(ids), WIDTH) for ids in content["ids"]])
        self.labels = np.array(content["labels"], np.int32)
        self.shape, self.classes, self.hub = shape, content["classes"], keras_hub
        self.keras, self.learning, self.clock = keras, learning, clock(keras)
        self.models: dict[str, Any] = {}
        self.strategy("full")

    def strategy(self, name: str) -> dict[str, Any]:
        """Train by ``full`` or ``frozen`` from now on: a model each, so that neither compiles
        again.
        """
        if name not in self.models:
            self.models[name] = self.build(name)
        self.model = self.models[name]
        return {}

    def build(self, name: str) -> Any:
        keras = self.keras
        learning = self.learning
        shape = self.shape
        backbone = self.hub.models.BertBackbone(
            vocabulary_size=shape["vocab_size"],
            num_layers=shape["num_hidden_layers"],
            num_heads=shape["num_attention_heads"],
            hidden_dim=shape["hidden_size"],
            intermediate_dim=shape["intermediate_size"],
            dropout=shape.get("hidden_dropout_prob", 0.1),
            max_sequence_length=shape["max_position_embeddings"],
        )
        backbone.trainable = name == "full"
        model = self.hub.models.BertTextClassifier(
            backbone, num_classes=self.classes, preprocessor=None, dropout=0.1
        )
        optimizer = keras.optimizers.AdamW(
            learning["rate"], weight_decay=learning["decay"], global_clipnorm=learning["clip"]
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )
        return model

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """One ``fit`` on the examples ``order``; timed between its first and last step."""
        tokens = self.tokens[order]
        mask = (self.np.arange(WIDTH) < self.lengths[order][:, None]).astype(self.np.int32)
        inputs = {
            "token_ids": tokens,
            "segment_ids": self.np.zeros_like(tokens),
            "padding_mask": mask,
        }
        history = self.model.fit(
            inputs,
            self.labels[order],
            batch_size=self.batch_size,
            epochs=1,
            shuffle=False,
            verbose=0,
            callbacks=[self.clock],
        )
        return {
            "examples": len(order),
            "seconds": self.clock.seconds,
            "loss": float(history.history["loss"][-1]),
        }


def clock(keras: Any) -> Any:
    """A callback that holds the seconds from the start of an epoch to its end."""

    class Clock(keras.callbacks.Callback):
        seconds = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.seconds = -time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds += (
                time.perf_counter()
            )  # the mean loss in logs was fetched, so every step has ended

    return Clock()


def rate_sizes(accelerator: bool) -> list[int]:
    """The sizes of the bfloat16 products that give a device's rate."""
    return [4096, 8192] if accelerator else [512, 1024]


def matmul_rates(product: Callable[[], Any], size: int, repeats: int) -> list[float]:
    """GFLOP/s of each repetition of a product of two ``size`` x ``size`` matrices, the first ones
    left out.
    """
    rates = []
    for repetition in range(repeats + 2):
        started = time.perf_counter()
        product()
        if repetition > 1:
            rates.append(2e-9 * size**3 / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    serve({"torch": Torch, "keras": Keras, "device": Device})
