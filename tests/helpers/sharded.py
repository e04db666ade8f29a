"""Steps on a mesh, as a program of its own: it needs several devices, which a process has from its start or never.

    python tests/sharded.py '[{"family": "bert", "strategy": "full", "mesh": "fsdp=8"}]'

prints a line of JSON a case: the losses of its steps, and what there is to say of its state. Without "mesh" a case runs
on the first device alone. With ADAPT_COORDINATOR and its like in the environment it is one process of several.
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
from adapt.training.loop import evaluate
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, make_eval, make_step
from tests.helpers import small

COMPILED = []  # names of the programs that were compiled
COMPILE = "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: COMPILED.extend([about["fun_name"]] * (event == COMPILE))
)
CASE = {
    "strategy": "full",
    "mesh": None,
    "steps": 50,
    "accumulate": 1,
    "batch": 32,
    "scan": False,
    "remat": "none",
    "dtype": None,
}


def wide(family: str):
    """The small encoder of a family, with sizes that eight devices divide."""
    config = dataclasses.replace(
        small.CONFIGS[family],
        width=32,
        heads=2,
        mlp_width=64,
        layers=2,
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


def run(
    family: str,
    strategy: str,
    mesh: str | None,
    steps: int,
    accumulate: int,
    batch: int,
    scan: bool,
    remat: str,
    dtype: str | None,
):
    layout = None if mesh is None else sharding.make_layout(mesh)
    model = dataclasses.replace(wide(family), layout=layout, scan=scan, remat=remat)
    model = model.cast(dtype) if dtype else model
    made = dataclasses.replace(examples(family), layout=layout)
    labels, tx = small.setup(wide(family), strategy, rate=1e-3)
    cut = frozen_prefix.cut(labels, model.encoder.config.layers)
    frozen, state = init_state(small.params(wide(family)), labels, tx, jax.random.key(0), layout)
    step = make_step(model, cross_entropy, tx, cut)
    plan = made.plan(batch // accumulate, 0, 20, accumulate)
    plan = dataclasses.replace(plan, rows=plan.rows[-1:])  # one shape: it compiles once
    losses, norms, epoch = [], [], 0
    COMPILED.clear()
    while len(losses) < steps:
        for each in made.batches(plan, 0, epoch, accumulate=accumulate):
            state, metrics = step(frozen, state, each)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
        epoch += 1
    compiled = [name for name in COMPILED if name == "jit(step)"]
    moments = jax.tree.leaves(state.opt_state)
    held = lambda leaves: sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    forward = make_eval(model, step.prefix)
    outputs = evaluate(forward, tree.merge(frozen, state.params), made.eval_batches(), len(made))
    return {
        "losses": losses[:steps],
        "norms": norms[:steps],
        "outputs": np.asarray(outputs, np.float64).tolist(),
        "share": held(moments) / sum(leaf.nbytes for leaf in moments),
        "compiled": len(compiled),
    }


if __name__ == "__main__":
    if "ADAPT_COORDINATOR" in os.environ:
        jax.distributed.initialize(
            os.environ["ADAPT_COORDINATOR"], 2, int(os.environ["ADAPT_PROCESS_ID"])
        )
    for case in json.loads(sys.argv[1]):
        print(json.dumps(run(**CASE | case)), flush=True)
