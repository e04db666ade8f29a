"""The other side of the benchmark: what users can pick instead, inside an interpreter of its own.

The benchmark starts this file with the interpreter that has the peer installed and talks to it in
JSON lines on stdin and stdout. It imports the standard library and, once asked to, its peer: never
``adapt``. Each side is written as its own documentation would have it, with the same data, batch,
dropout, AdamW, weight decay and clipping.
"""
# pyright: reportMissingImports=false

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

PRODUCTS = 20  # of matrices on a device, between two looks at it
WIDTH = 64  # keras-hub: tokens an example, cut or padded
KERAS_LIBRARIES = ("keras-hub", "keras", "jax")
TORCH_LIBRARIES = ("torch", "transformers", "sentence-transformers")
BACKEND_LIBRARIES = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a side of the benchmark on the CPU is started with."""

    checkpoint: str  # a folder in the Hugging Face layout
    task: str  # a JSON file with texts, token ids and labels
    batch_size: int
    cores: int
    seed: int
    learning: dict[str, float]  # rate, decay, clip


def start(side: Callable[..., Any], *arguments: Any, **setting: Any) -> Any:
    """The side, by the entries of its request."""
    return side(*arguments, Setting(**setting))


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
                side = None  # its memory is free before another one takes some
                keep_to(request["cores"])
                side = sides[request.pop("side")](**request)
                answer = {"versions": side.versions}
            else:
                answer = getattr(side, job)(**request)
        except Exception as error:  # of any library: its name is the answer, the log has all of it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def keep_to(cores: int) -> None:
    """Run on the first ``cores`` of the cores that this process may use; before any library counts
    them.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of Python and of these packages."""
    found = {"python": sys.version.split()[0]}
    for name in names:
        found[name] = importlib.metadata.version(name)
    return found


def read_json(path: str) -> Any:
    """The content of a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


class Torch:
    """transformers and torch: AutoModel, mean pooling and a linear classifier; and
    sentence-transformers' ``encode``.
    """

    def __init__(self, setting: Setting):
        self.torch = seeded_torch(setting.cores, setting.seed)
        import transformers

        self.versions = versions(TORCH_LIBRARIES)
        content = read_json(setting.task)
        self.checkpoint = setting.checkpoint
        self.batch_size = setting.batch_size
        self.learning = setting.learning
        self.texts = content["texts"]
        self.labels = content["labels"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.checkpoint)
        self.ids = self.tokenizer(
            content["train"],
            truncation=True,
            max_length=content["max_length"],
            return_attention_mask=False,
        )["input_ids"]
        auto = transformers.AutoModel
        self.encoder = auto.from_pretrained(self.checkpoint, add_pooling_layer=False)
        config = self.encoder.config
        self.head = self.torch.nn.Linear(config.hidden_size, content["classes"])
        self.dropout = self.torch.nn.Dropout(config.hidden_dropout_prob)
        self.strategy("full")
        self.sentences: Any = None

    def strategy(self, name: str) -> dict[str, Any]:
        """Train by this strategy from now on: what is frozen needs no gradient, and no dropout."""
        self.frozen = frozen_modules(self.encoder, name)
        self.encoder.requires_grad_(True)
        for module in self.frozen:
            module.requires_grad_(False)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.weights = [weight for weight in parameters if weight.requires_grad]
        self.optimizer = make_adamw(self.torch, self.weights, self.learning)
        return {}

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """Train on the examples ``order``, each batch padded to its longest: pure steps, tokens
        were made before.
        """
        torch = self.torch
        cross_entropy = torch.nn.functional.cross_entropy
        self.encoder.train()
        self.dropout.train()
        for module in self.frozen:
            module.eval()
        loss = torch.zeros(())
        started = time.perf_counter()
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            ids = [self.ids[i] for i in index]
            batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            mask = batch["attention_mask"]
            outputs = self.encoder(input_ids=batch["input_ids"], attention_mask=mask)
            hidden = outputs.last_hidden_state
            pooled = mean_of_tokens(hidden, mask)
            labels = torch.tensor([self.labels[i] for i in index])
            loss = cross_entropy(self.head(self.dropout(pooled)), labels)
            update(torch, loss, self.weights, self.optimizer, self.learning["clip"])
        seconds = time.perf_counter() - started
        return {"examples": len(order), "seconds": seconds, "loss": float(loss.detach())}

    def extract(self, index: list[int], features: str | None = None) -> dict[str, float]:
        """Encode the texts ``index`` with sentence-transformers, tokenization included."""
        if self.sentences is None:
            from sentence_transformers import SentenceTransformer

            self.sentences = SentenceTransformer(self.checkpoint, device="cpu")
        texts = [self.texts[i] for i in index]
        return encode_texts(self.sentences, texts, self.batch_size, features)

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
        return {"rates": torch_rates(self.torch, sizes, repeats)}


def torch_rates(torch: Any, sizes: list[int], repeats: int) -> dict[str, list[float]]:
    """float32 matrix products by torch on the CPU: GFLOP/s of each repetition, by size."""
    rates = {}
    with torch.no_grad():
        for size in sizes:
            matrix = torch.randn(size, size)
            rates[str(size)] = matmul_rates(lambda a: a @ a, matrix, repeats)
    return rates


def seeded_torch(cores: int, seed: int) -> Any:
    """torch on so many cores, with its generators seeded."""
    import torch

    torch.set_num_threads(cores)
    torch.manual_seed(seed)
    return torch


def frozen_modules(encoder: Any, strategy: str) -> list[Any]:
    """What of a BERT does not train by ``full``, ``frozen`` or ``top:K``."""
    if strategy == "full":
        return []
    blocks = list(encoder.encoder.layer)
    num_trained = int(strategy.removeprefix("top:")) if strategy.startswith("top:") else 0
    return [encoder.embeddings, *blocks[: len(blocks) - num_trained]]


def make_adamw(torch: Any, weights: list[Any], learning: Mapping[str, float]) -> Any:
    """torch's AdamW, in which matrices decay, and biases and normalisations don't. Fused, as the
    Trainer of transformers has it, which is faster than the loop over parameters.
    """
    decayed = [weight for weight in weights if weight.ndim > 1]
    not_decayed = [weight for weight in weights if weight.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": learning["decay"]},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning["rate"], fused=True)


def mean_of_tokens(hidden: Any, mask: Any) -> Any:
    """The mean of the states [B, T, D] of each example's own tokens, by ``mask`` [B, T]: [B, D]."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def update(torch: Any, loss: Any, weights: list[Any], optimizer: Any, clip: float) -> None:
    """Take a step against the gradient of the loss, which is clipped to a norm of ``clip``."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    optimizer.zero_grad()


class Sentences:
    """sentence-transformers with one of its other backends: the model is exported to ``onnx`` or
    ``openvino`` first, as its documentation has it, in the ``precision`` that is asked for.

    ``default`` is what the backend picks by itself: ONNX Runtime computes in float32, OpenVINO in
    bfloat16 where the processor has it. ``int8`` quantises the weights, and the activations as
    they come.
    """

    def __init__(self, backend: str, precision: str, setting: Setting):
        from sentence_transformers import SentenceTransformer

        self.versions = versions((*TORCH_LIBRARIES, *BACKEND_LIBRARIES[backend]))
        self.batch_size = setting.batch_size
        self.texts = read_json(setting.task)["texts"]
        checkpoint = setting.checkpoint
        load = functools.partial(SentenceTransformer, device="cpu", backend=backend)
        if backend == "openvino":
            settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": setting.cores}
            if precision == "float32":
                settings["INFERENCE_PRECISION_HINT"] = "f32"
            self.model = load(checkpoint, model_kwargs={"ov_config": settings})
            return
        options = onnx_options(setting.cores)
        self.model = load(checkpoint, model_kwargs=options)
        if precision == "int8":
            with tempfile.TemporaryDirectory() as folder:
                options["file_name"] = quantise(self.model, folder)
                self.model = load(folder, model_kwargs=options)

    def extract(self, index: list[int], features: str | None = None) -> dict[str, float]:
        """Encode the texts ``index``, tokenization included."""
        return encode_texts(self.model, [self.texts[i] for i in index], self.batch_size, features)


def onnx_options(cores: int) -> dict[str, Any]:
    """How ONNX Runtime loads a model."""
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = cores
    return {"provider": "CPUExecutionProvider", "session_options": session}


def quantise(model: Any, folder: str) -> str:
    """Write an ONNX model in int8 into a folder; the name of its file there."""
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    model.save_pretrained(folder)
    kind = quantisation()
    export_dynamic_quantized_onnx_model(model, kind, folder)
    return f"onnx/model_qint8_{kind}.onnx"


def quantisation() -> str:
    """The name of what ONNX Runtime computes in int8 with on this processor."""
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64"
    flags: list[str] = []
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    if "avx512_vnni" in flags:
        return "avx512_vnni"
    return "avx512" if "avx512f" in flags else "avx2"


def encode_texts(
    model: Any, texts: list[str], batch_size: int, features: str | None
) -> dict[str, float]:
    """The time that sentence-transformers takes to encode texts. Their vectors, float32 [N, D], go
    into the file ``features`` where one is named.
    """
    started = time.perf_counter()
    vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False)
    seconds = time.perf_counter() - started
    if features is not None:
        vectors.astype("float32").tofile(features)
    return {"examples": len(vectors), "seconds": seconds}


class Keras:
    """keras-hub on the JAX backend: BertTextClassifier of the checkpoint's shape, fixed width,
    random weights.
    """

    def __init__(self, setting: Setting):
        os.environ["KERAS_BACKEND"] = "jax"
        import keras
        import keras_hub
        import numpy as np

        self.np = np
        self.keras = keras
        self.hub = keras_hub
        self.versions = versions(KERAS_LIBRARIES)
        self.batch_size = setting.batch_size
        self.learning = setting.learning
        keras.utils.set_random_seed(setting.seed)
        content = read_json(setting.task)
        self.shape = read_json(os.path.join(setting.checkpoint, "config.json"))
        self.tokens = np.zeros((len(content["ids"]), WIDTH), np.int32)
        for row, ids in zip(self.tokens, content["ids"], strict=True):
            row[: len(ids[:WIDTH])] = ids[:WIDTH]
        self.lengths = np.array([min(len(ids), WIDTH) for ids in content["ids"]])
        self.labels = np.array(content["labels"], np.int32)
        self.classes = content["classes"]
        self.clock = clock(keras)
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
        """The compiled model of a strategy."""
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
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, jit_compile=True)
        return model

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """One ``fit`` on the examples ``order``; timed between its first and last step."""
        np = self.np
        tokens = self.tokens[order]
        mask = np.arange(WIDTH) < self.lengths[order][:, None]
        inputs = {
            "token_ids": tokens,
            "segment_ids": np.zeros_like(tokens),
            "padding_mask": mask.astype(np.int32),
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
        loss = float(history.history["loss"][-1])
        return {"examples": len(order), "seconds": self.clock.seconds, "loss": loss}


def clock(keras: Any) -> Any:
    """A callback that holds the seconds from the start of an epoch to its end."""

    class Clock(keras.callbacks.Callback):
        seconds = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.seconds = -time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            # The mean loss in logs was fetched, so every step has ended.
            self.seconds += time.perf_counter()

    return Clock()


def rate_sizes(accelerator: bool) -> list[int]:
    """The sizes of the bfloat16 products that give a device's rate."""
    return [4096, 8192] if accelerator else [512, 1024]


def matmul_rates(multiply: Callable[[Any], Any], matrix: Any, repeats: int) -> list[float]:
    """GFLOP/s of each repetition of ``multiply(matrix)``, a product of square matrices as large as
    this one; the first two repetitions are left out.
    """
    flops = 2 * matrix.shape[0] ** 3
    rates = []
    for repetition in range(repeats + 2):
        started = time.perf_counter()
        multiply(matrix)
        if repetition > 1:
            rates.append(1e-9 * flops / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    serve(
        {
            "torch": functools.partial(start, Torch),
            "keras": functools.partial(start, Keras),
            "onnx": functools.partial(start, Sentences, "onnx", "default"),
            "onnx_int8": functools.partial(start, Sentences, "onnx", "int8"),
            "openvino": functools.partial(start, Sentences, "openvino", "default"),
            "openvino_float32": functools.partial(start, Sentences, "openvino", "float32"),
        }
    )
