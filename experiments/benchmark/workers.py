"""The sides of the benchmark as processes: how one is driven and watched, and adapt's own."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.errors import TrainingError
from experiments.benchmark import peers

ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # where a GPU is at hand too


class Worker:
    """One side in a process of its own, driven by JSON lines; what it prints goes to ``log``."""

    def __init__(self, name: str, command: list[str], log: Path, where: Mapping[str, str] = ON_CPU):
        self.name, self.log, self.program = name, log, command[0]
        self.start_up = 0.0  # seconds until the side had answered that it is there
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **where},
            )

    def ask(self, job: str, **request: Any) -> dict[str, Any]:
        """The answer to one job, its ``wall`` seconds, and ``foreign``: the share of all cores that
        others used meanwhile.

        Raises :class:`TrainingError` with the worker's own words when the job failed.
        """
        assert self.process.stdin and self.process.stdout
        started = time.perf_counter()
        before = cpu_seconds(self.process.pid)
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"job": job} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        try:
            answer = (
                json.loads(line) if line else {"error": f"the process ended{self.last_words()}"}
            )
        except ValueError:
            answer = {
                "error": (
                    f"it answered {line.strip()[:80]!r}: is {self.program} a Python with what it "
                    "needs?"
                )
            }
        if "error" in answer:
            raise TrainingError(f"{self.name} failed: {answer['error']} (see {self.log})")
        after = cpu_seconds(self.process.pid)
        wall = time.perf_counter() - started
        foreign = (after[0] - before[0]) - (after[1] - before[1])
        return answer | {
            "foreign": max(foreign, 0.0) / (wall * (os.cpu_count() or 1)),
            "wall": wall,
        }

    def last_words(self) -> str:
        """The last line of its log, which goes with the folder where nothing else came of a run."""
        lines = [
            line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()
        ]
        return f": {lines[-1].strip()[:200]}" if lines else ""

    def close(self) -> None:
        """End the process: it leaves when its input ends, and is killed if it does not."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(of the whole machine, of one process) until now; zeros where there is no /proc."""
    try:
        machine = [
            int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]
        own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    user = int(own[11]) + int(own[12])
    idle = machine[3] + machine[4]
    return (sum(machine) - idle) / tick, user / tick


def peak_memory(command: list[str], log: Path) -> float:
    """Run a command to its end: the peak of its anonymous memory (RssAnon) in MB, looked at every
    20 ms.

    Memory-mapped files count in RSS but not here, as the kernel can drop them. 0 where there is no
    /proc.
    """
    peak = 0
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = [
                    line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")
                ]
                peak = max(peak, *map(int, found), 0)
            time.sleep(0.02)
    if process.returncode:
        raise TrainingError(f"{' '.join(command[1:4])} failed: {log.read_text().strip()[-300:]}")
    return peak / 1000


class Adapt:
    """adapt itself, with the functions that the experiments use: nothing here is for the benchmark
    alone.
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
        import numpy as np

        from adapt.cli.launch import compilation_cache, prepare_cpu
        from adapt.cli.run_folder import versions
        from adapt.data import examples, sources
        from adapt.pretrained import hub
        from adapt.ragged import ragged

        prepare_cpu()
        compilation_cache()
        content = json.loads(Path(task).read_text("utf-8"))
        pretrained = hub.load(checkpoint)
        config = pretrained.config
        tokenizer = pretrained.tokenizer
        assert tokenizer is not None  # checked by the benchmark
        tokens = ragged(content["ids"])
        targets = np.array(content["labels"], np.int32)
        source = sources.TokenSource(tokens, tokenizer.max_length, config.pad_token)
        self.examples = examples.Examples(source, np.arange(len(tokens)), targets)
        self.plan = self.examples.plan(batch_size, seed, content["epochs"])
        self.seed, self.batch_size, self.learning, self.classes = (
            seed,
            batch_size,
            learning,
            content["classes"],
        )
        self.pretrained, self.texts = pretrained, content["texts"]
        self.versions = versions()
        self.runs: dict[str, Any] = {}
        self.strategy("full")

    def strategy(self, name: str) -> dict[str, Any]:
        """Train by this strategy from now on, with the cache where something stands still."""
        import dataclasses

        import jax

        from adapt import tree
        from adapt.models import Classifier, Encoder, Model
        from adapt.prefix_cache import states
        from adapt.training import frozen_prefix, losses, optim, strategies
        from adapt.training.step import init_state, make_step

        if name not in self.runs:
            config = self.pretrained.config
            key = jax.random.key(self.seed)
            model = Model(Encoder(config), Classifier(self.classes, "mean", dropout=config.dropout))
            params = tree.graft(
                tree.drop(self.pretrained.params, "head"), "head", model.init_head(key)
            )
            phase = strategies.strategy(name, config.layers).phases[0]
            labels = tree.label(params, phase.rules)
            groups = {
                group: optim.adamw(self.learning["rate"], self.learning["decay"])
                for group in phase.groups
            }
            tx = optim.by_label(groups, labels, self.learning["clip"])
            step = make_step(
                model, losses.cross_entropy, tx, frozen_prefix.cut(labels, config.layers)
            )
            frozen, state = init_state(params, labels, tx, key)
            part = self.examples
            if step.prefix is not None:
                entry = states.cached_array(frozen, model, step.prefix.depth, part, "float32")
                part = dataclasses.replace(
                    part, states=states.compute_states(step.prefix, frozen, part, entry)
                )
            self.runs[name] = {
                "step": step,
                "frozen": frozen,
                "state": state,
                "examples": part,
                "seen": set(),
            }
        self.run = self.runs[name]
        return {}

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """The first steps of an epoch, packing included; ``order`` is what every epoch's
        permutation gives.
        """
        from adapt.training.loop import run_steps

        steps = -(-len(order) // self.batch_size)
        run = self.run
        batches = itertools.islice(run["examples"].batches(self.plan, self.seed, epoch), steps)
        ((run["state"], record),) = run_steps(
            run["step"], run["frozen"], run["state"], batches, steps, run["seen"]
        )
        shown = {
            "seconds": record["seconds"],
            "loss": record["loss"],
            "compile_seconds": record["compile_seconds"],
        }
        return {"examples": record["timed_examples"]} | shown

    def extract(self, index: list[int]) -> dict[str, float]:
        """Features of the texts ``index``, tokenization and packing included."""
        from adapt.features import encode

        texts = [self.texts[i] for i in index]
        started = time.perf_counter()
        features = encode(self.pretrained, texts, "mean")
        return {"examples": len(features), "seconds": time.perf_counter() - started}

    def rate(self, sizes: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
        """float32 matrix products: GFLOP/s of each repetition, by size."""
        import jax

        product = jax.jit(lambda a: a @ a)
        found: dict[str, list[float]] = {}
        for size in sizes:
            a = jax.random.normal(jax.random.key(0), (size, size))
            found[str(size)] = peers.matmul_rates(
                lambda a=a: product(a).block_until_ready(), size, repeats
            )
        return {"rates": found}


def command(name: str, interpreter: Path | str = sys.executable) -> list[str]:
    """How the worker of a side is started; a peer's interpreter sees nothing of this project but
    the file peers.py.
    """
    if name == "adapt":
        return [sys.executable, "-m", "experiments.benchmark.workers"]
    return [str(interpreter), "-P", peers.__file__]


if __name__ == "__main__":
    peers.serve({"adapt": Adapt})
