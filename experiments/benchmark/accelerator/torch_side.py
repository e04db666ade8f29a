"""The other side on an accelerator: transformers + torch, and sentence-transformers.

It runs in the Python that has them, and imports nothing of this project but peers.py. Fine-tuning
is as its documentation has it: batches padded to their longest, bfloat16 by autocast, torch's fused
attention, fused AdamW. Without an accelerator everything runs on the CPU.
"""
# pyright: reportMissingImports=false

import csv
import gc
import time
from typing import Any

from experiments.benchmark.peers import (
    PRODUCTS,
    TORCH_LIBRARIES,
    frozen_modules,
    make_adamw,
    matmul_rates,
    mean_of_tokens,
    rate_sizes,
    seeded_torch,
    serve,
    torch_rates,
    update,
    versions,
)

WARM = 10  # steps before those that count, in which kernels are chosen or compiled


def place(torch: Any) -> str:
    """Where torch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_column(path: str, column: str) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


class Finetuning:
    """AutoModel of a checkpoint with mean pooling and a linear classifier, on real texts."""

    def __init__(
        self,
        checkpoint: str,
        train: str,
        test: str,
        cores: int,
        seed: int,
        learning: dict[str, float],
    ):
        import transformers

        self.torch = seeded_torch(cores, seed)
        self.transformers = transformers
        self.device = place(self.torch)
        self.versions = versions(TORCH_LIBRARIES[:2]) | {"device": self.device}
        self.checkpoint = checkpoint
        self.learning = learning
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.ids = self.tokenize(read_column(train, "text"))
        self.test_ids = self.tokenize(read_column(test, "text"))
        labels = read_column(train, "label")
        names = sorted(set(labels))
        self.labels = self.torch.tensor([names.index(label) for label in labels])
        self.classes = len(names)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        settings: dict[str, Any] = {"truncation": True, "max_length": 512}
        return self.tokenizer(texts, return_attention_mask=False, **settings)["input_ids"]

    def train(
        self, strategy: str, batch_size: int, is_compiled: bool, seconds: float
    ) -> dict[str, float]:
        """Steps for so many seconds, and evaluations for half as many, each timed after the first
        ones: examples a second. ``first_seconds`` are those of setting up and the first steps.
        """
        torch = self.torch
        started = time.perf_counter()
        self.build(strategy, is_compiled)
        order = torch.randperm(len(self.ids)).tolist()
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        batches = [batch for batch in batches if len(batch) == batch_size]
        warm = min(WARM, len(batches))
        for index in batches[:warm]:
            self.step(index)
        self.wait()
        first_seconds = time.perf_counter() - started

        def evaluate_batch(number: int) -> int:
            return self.evaluate(range(number * batch_size, (number + 1) * batch_size))

        def train_batch(number: int) -> int:
            return self.step(batches[number % len(batches)])

        trained = self.speed(train_batch, seconds)
        evaluate_batch(0)
        self.wait()
        return {
            "first_seconds": first_seconds,
            "first_examples": warm * batch_size,
            "examples_per_second": trained,
            "evaluated_per_second": self.speed(evaluate_batch, seconds / 2),
        }

    def speed(self, work: Any, seconds: float) -> float:
        """Examples a second of ``work(0)``, ``work(1)``, ..., which say how many they had."""
        started = time.perf_counter()
        examples = 0
        number = 0
        while True:
            for _ in range(10):
                examples += work(number)
                number += 1
            self.wait()  # as the losses of a log do
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return examples / elapsed

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def build(self, strategy: str, is_compiled: bool) -> None:
        """The model and the optimizer of a strategy: what is frozen needs no gradient, and no
        dropout.
        """
        torch = self.torch
        auto = self.transformers.AutoModel
        encoder = auto.from_pretrained(
            self.checkpoint, add_pooling_layer=False, attn_implementation="sdpa"
        )
        self.encoder = encoder.to(self.device)
        config = encoder.config
        self.head = torch.nn.Linear(config.hidden_size, self.classes).to(self.device)
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.frozen = frozen_modules(encoder, strategy)
        for module in self.frozen:
            module.requires_grad_(False)
        parameters = [*encoder.parameters(), *self.head.parameters()]
        self.weights = [weight for weight in parameters if weight.requires_grad]
        self.optimizer = make_adamw(torch, self.weights, self.learning)
        self.run = torch.compile(encoder, dynamic=True) if is_compiled else encoder

    def outputs(self, ids: list[list[int]]) -> Any:
        """The logits of a batch, padded to its longest."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        tokens = batch["input_ids"].to(self.device, non_blocking=True)
        mask = batch["attention_mask"].to(self.device, non_blocking=True)
        with self.torch.autocast(self.device, self.torch.bfloat16):
            hidden = self.run(input_ids=tokens, attention_mask=mask).last_hidden_state
            return self.head(self.dropout(mean_of_tokens(hidden, mask)))

    def step(self, index: list[int]) -> int:
        """One step; how many examples it had."""
        torch = self.torch
        self.encoder.train()
        self.dropout.train()
        for module in self.frozen:
            module.eval()
        labels = self.labels[index].to(self.device, non_blocking=True)
        logits = self.outputs([self.ids[i] for i in index])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        update(torch, loss, self.weights, self.optimizer, self.learning["clip"])
        return len(index)

    def evaluate(self, index: range) -> int:
        """The logits of some texts of the test set, which is gone through again and again."""
        self.encoder.eval()
        self.dropout.eval()
        with self.torch.inference_mode():
            self.outputs([self.test_ids[i % len(self.test_ids)] for i in index]).argmax(-1).tolist()
        return len(index)


class Sentences:
    """sentence-transformers' ``encode`` with the mean of the tokens."""

    def __init__(self, checkpoint: str, sentences: str, cores: int):
        import torch
        from sentence_transformers import SentenceTransformer

        self.torch = torch
        self.versions = versions(TORCH_LIBRARIES) | {"device": place(torch)}
        torch.set_num_threads(cores)
        self.folder = sentences.rpartition("/")[0]
        self.texts = read_column(sentences, "text")
        self.model = SentenceTransformer(checkpoint, device=place(torch))

    def encode(self, dtype: str, batch_size: int, count: int) -> dict[str, float]:
        """The time of the first ``count`` texts, tokenization included, after a first batch. The
        vectors are written beside the sentences.
        """
        import numpy as np

        self.model.to(getattr(self.torch, dtype))
        self.encode_first(2 * batch_size, batch_size)
        started = time.perf_counter()
        vectors = self.encode_first(count, batch_size)
        seconds = time.perf_counter() - started
        np.save(f"{self.folder}/sentence_transformers.npy", vectors.astype("float32"))
        return {"examples": len(vectors), "seconds": seconds}

    def encode_first(self, count: int, batch_size: int) -> Any:
        """The vectors of the first texts."""
        texts = self.texts[:count]
        return self.model.encode(texts, batch_size=batch_size, show_progress_bar=False)


class Steps:
    """One step on the accelerator that torch finds: AutoModel of a shape, random weights, a linear
    head.

    ``shape`` is a config.json. The first ``num_frozen`` stages, the embedding and then blocks, do
    not train. ``dtype`` is float32, or bfloat16 by autocast.
    """

    def __init__(
        self,
        shape: dict[str, Any],
        pooling: str,
        classes: int,
        batch_size: int,
        tokens: int,
        num_frozen: int,
        dtype: str,
        cores: int,
        seed: int,
        learning: dict[str, float],
    ):
        import transformers

        torch = seeded_torch(cores, seed)
        self.torch = torch
        self.pooling = pooling
        self.clip = learning["clip"]
        self.is_mixed = dtype == "bfloat16"
        self.where = place(torch)
        if self.where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.versions = versions(TORCH_LIBRARIES[:2]) | {"device": self.where}

        kind = shape.pop("model_type")
        config = transformers.AutoConfig.for_model(kind, **shape)
        config.use_cache = False
        options = {} if kind in ("gpt2", "modernbert") else {"add_pooling_layer": False}
        encoder = transformers.AutoModel.from_config(config, attn_implementation="sdpa", **options)
        self.encoder = encoder.to(self.where)
        self.head = torch.nn.Linear(config.hidden_size, classes).to(self.where)
        self.dropout = torch.nn.Dropout(0.1 if kind != "vit" else 0.0)
        self.encoder.train()
        if num_frozen:
            self.freeze(num_frozen, config.num_hidden_layers)

        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.weights = [weight for weight in parameters if weight.requires_grad]
        self.optimizer = make_adamw(torch, self.weights, learning)
        self.batches = [self.make_batch(config, batch_size, tokens, classes) for _ in range(2)]

    def freeze(self, num_frozen: int, num_blocks: int) -> None:
        """Freeze the first stages: what is frozen needs no gradient, and no dropout."""
        nn = self.torch.nn
        lists = [part for part in self.encoder.modules() if isinstance(part, nn.ModuleList)]
        blocks = next(part for part in lists if len(part) == num_blocks)
        self.encoder.requires_grad_(False).eval()
        for block in blocks[num_frozen - 1 :]:
            block.requires_grad_(True).train()
        if num_frozen <= num_blocks:  # the norm after the last block trains with it
            for module in self.encoder.children():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)

    def make_batch(self, shape: Any, batch_size: int, tokens: int, classes: int) -> Any:
        """(inputs, labels) of random examples of full length; ``shape`` is transformers' config."""
        torch = self.torch
        if shape.model_type == "vit":
            size = (batch_size, shape.num_channels, shape.image_size, shape.image_size)
            inputs = {"pixel_values": torch.randn(size)}
        else:
            inputs = {"input_ids": torch.randint(1, shape.vocab_size, (batch_size, tokens))}
        return inputs, torch.randint(classes, (batch_size,))

    def train(self, steps: int) -> dict[str, float]:
        """Whole steps, until the device has done them; the batches are sent in each."""
        torch = self.torch
        cross_entropy = torch.nn.functional.cross_entropy
        loss = torch.zeros(())
        examples = 0
        started = time.perf_counter()
        for number in range(steps):
            inputs, labels = self.batches[number % 2]
            on_device = {}
            for name, value in inputs.items():
                on_device[name] = value.to(self.where, non_blocking=True)
            labels = labels.to(self.where, non_blocking=True)
            with torch.autocast(self.where, torch.bfloat16, enabled=self.is_mixed):
                hidden = self.encoder(**on_device).last_hidden_state
                pooled = hidden[:, 0] if self.pooling == "cls" else hidden.mean(1)
                loss = cross_entropy(self.head(self.dropout(pooled)), labels)
            update(torch, loss, self.weights, self.optimizer, self.clip)
            examples += len(labels)
        last_loss = float(loss.detach())  # waits for the device
        return {"examples": examples, "seconds": time.perf_counter() - started, "loss": last_loss}

    def peak(self) -> dict[str, int | None]:
        """The most bytes of the device in use at once since the start; None on a CPU."""
        return {"bytes": self.torch.cuda.max_memory_allocated() if self.where == "cuda" else None}

    def rate(self, sizes: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
        """float32 matrix products: GFLOP/s of each repetition, by size."""
        return {"rates": torch_rates(self.torch, sizes, repeats)}


class Rate:
    """The rate of torch's matrix products."""

    def __init__(self, cores: int):
        import torch

        self.torch = torch
        self.versions = versions(TORCH_LIBRARIES[:2]) | {"device": place(torch)}

    def rate(self, repeats: int) -> dict[str, float]:
        """FLOP/s of bfloat16 products, the fastest of two sizes, many between two looks at the
        device.
        """
        torch = self.torch
        where = place(torch)

        def multiply(matrix: Any) -> None:
            result = matrix
            for _ in range(PRODUCTS):
                result = result @ matrix
            float(result[0, 0])  # waits for the device

        fastest = 0.0
        with torch.no_grad():
            for size in rate_sizes(where == "cuda"):
                normal = torch.randn(size, size, device=where, dtype=torch.bfloat16)
                rates = matmul_rates(multiply, normal / size**0.5, repeats)
                fastest = max(fastest, max(rates) * 1e9 * PRODUCTS)
        return {"flops": fastest}


class Nothing:
    """No side: the memory of the one before is given back to the device."""

    def __init__(self, cores: int):
        import torch

        self.versions: dict[str, str] = {}
        gc.collect()
        if place(torch) == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    serve(
        {
            "finetuning": Finetuning,
            "sentences": Sentences,
            "steps": Steps,
            "rate": Rate,
            "nothing": Nothing,
        }
    )
