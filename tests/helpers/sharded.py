"""Training steps on a mesh, in a program of its own: a process has several devices from its start, or never.

    python -m tests.helpers.sharded '[{"family": "bert", "strategy": "full", "mesh": "fsdp=8"}]'

It prints a line of JSON a case: see :func:`report`. Without "mesh" a case runs on the first device alone.
With ADAPT_COORDINATOR and ADAPT_PROCESS_ID in the environment it is one process of two.
"""

import dataclasses
import json
import os
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count="
    + os.environ.get("DEVICES", "8")
)

os.environ.setdefault("NPROC", "64")  # threads enough for collectives that wait for each other

import jax
import numpy as np

from adapt import tree
from adapt.data.examples import Examples
from adapt.data.sources import ImageSource, TokenSource
from adapt.parallel import sharding
from adapt.training import frozen_prefix
from adapt.training.context import context_loss
from adapt.training.loop import evaluate
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, make_eval, make_step
from tests.helpers import small

COMPILED: list[str] = []  # names of the programs that were compiled


def note_compiled(event: str, seconds: float, **about) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(about["fun_name"])


jax.monitoring.register_event_duration_secs_listener(note_compiled)

CASE = {
    "strategy": "full",
    "mesh": None,
    "layers": 1,
    "steps": 6,
    "accumulate": 1,
    "batch": 32,
    "scan": False,
    "remat": "none",
    "dtype": None,
    "context": False,
    "frozen_dtype": None,
}


@context_loss
def with_a_context(context):
    """The cross-entropy twice, the second time by a pass of its own; labels come as extras."""
    again = cross_entropy(context.forward(), context.batch["again"])
    states = 0 * context.head(context.hidden).sum(-1)
    return (cross_entropy(context.outputs, context.labels) + again + states) / 2


def wide(family: str, layers: int):
    """The small encoder of a family, with sizes that eight devices divide."""
    config = dataclasses.replace(
        small.CONFIGS[family],
        width=32,
        mlp_width=64,
        layers=layers,
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = small.classifier(family)
    return dataclasses.replace(model, encoder=model.encoder.clone(config=config))


def examples(family: str, count: int = 96, longest: int = 20) -> Examples:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, small.CLASSES, count).astype(np.int32)
    if family == "vit":
        pictures = rng.standard_normal((count, 16, 16, 3)).astype(np.float32)
        images = ImageSource(lambda rows: pictures[rows], count, 17, "x")
        return Examples(images, np.arange(count), labels)
    source = TokenSource(small.texts(count, 1, longest), longest)
    return Examples(source, np.arange(count), labels)


def report(
    family: str,
    strategy: str,
    mesh: str | None,
    layers: int,
    steps: int,
    accumulate: int,
    batch: int,
    scan: bool,
    remat: str,
    dtype: str | None,
    context: bool,
    frozen_dtype: str | None,
):
    """What some steps give: losses, gradient norms and the outputs after them.

    ``share`` is the part of the optimizer's moments that the first device holds, ``compiled`` how often
    the step was compiled.
    """
    layout = None if mesh is None else sharding.make_layout(mesh)
    plain = wide(family, layers)
    model = dataclasses.replace(plain, layout=layout, scan=scan, remat=remat)
    if dtype:
        model = model.cast(dtype)
    labels, tx = small.setup(plain, strategy, rate=1e-3)
    frozen, state = init_state(
        small.params(plain), labels, tx, jax.random.key(0), layout, frozen_dtype
    )
    depth = frozen_prefix.cut(labels, model.encoder.config.layers)
    step = make_step(model, with_a_context if context else cross_entropy, tx, depth)

    data = examples(family)
    extras = {"again": data.labels} if context else {}
    data = dataclasses.replace(data, layout=layout, extras=extras)
    shapes = data.batch_shapes(batch // accumulate, 0, 20, accumulate)
    shapes = dataclasses.replace(shapes, rows=shapes.rows[-1:])  # one shape: it compiles once
    losses = []
    norms = []
    epoch = 0
    COMPILED.clear()
    while len(losses) < steps:
        for inputs in data.batches(shapes, 0, epoch, accumulate=accumulate):
            state, metrics = step(frozen, state, inputs)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
        epoch += 1
    compiled = COMPILED.count("jit(step)")

    forward = make_eval(model, step.prefix)
    params = tree.merge(frozen, state.params)
    outputs = evaluate(forward, params, data.eval_batches(), len(data))
    moments = jax.tree.leaves(state.opt_state)
    on_first_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in moments)
    return {
        "losses": losses[:steps],
        "norms": norms[:steps],
        "outputs": np.asarray(outputs, np.float64).tolist(),
        "share": on_first_device / tree.nbytes(moments),
        "compiled": compiled,
        "int8": share_of_int8(frozen),
    }


def share_of_int8(frozen: tree.Tree) -> float:
    """The part of the int8 kernels that the first device holds; 0 where there are none."""
    kernels = [leaf for leaf in jax.tree.leaves(frozen) if leaf.dtype == np.int8]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in kernels)
    return held / max(tree.nbytes(kernels), 1)


if __name__ == "__main__":
    if "ADAPT_COORDINATOR" in os.environ:
        jax.distributed.initialize(
            os.environ["ADAPT_COORDINATOR"], 2, int(os.environ["ADAPT_PROCESS_ID"])
        )
    for case in json.loads(sys.argv[1]):
        print(json.dumps(report(**CASE | case)), flush=True)
