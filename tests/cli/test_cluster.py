"""Several processes, on one host or on two, are one run: the same losses, one folder, one line when one of them dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from adapt.cli import extract, finetune
from adapt.cli.cluster import reason
from adapt.cli.flags import read_flags
from adapt.cli.watcher import WORKER
from tests.helpers import tiny
from tests.helpers.meshes import case_key, relative_error, start_cases

pytestmark = pytest.mark.usefixtures("own_cache")

CASES = [
    {"family": "bert", "strategy": "full", "mesh": "data=2,fsdp=4"},
    {"family": "bert", "strategy": "frozen", "mesh": "data=8"},
    {"family": "vit", "strategy": "full", "mesh": "fsdp=8"},
    {"family": "vit", "strategy": "frozen", "mesh": "data=2,fsdp=2,tensor=2"},
]


def address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def test_two_processes_of_four_devices_train_as_one_device_does(on_one_device, forks):
    where = address()
    env = lambda number: {
        "ADAPT_COORDINATOR": where,
        "ADAPT_PROCESS_ID": str(number),
        "DEVICES": "4",
    }
    pair = [start_cases(forks, CASES, **env(number)) for number in range(2)]
    outputs = [process.communicate(timeout=600) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    for number, case in enumerate(CASES):
        one = on_one_device[case_key(case | {"mesh": None})]
        for out, _ in outputs:
            both = [json.loads(line) for line in out.splitlines() if line.startswith("{")][number]
            assert relative_error(both["losses"], one["losses"]) < 1e-5
            assert relative_error(both["outputs"], one["outputs"], 1.0) < 1e-4


@pytest.fixture
def together(scratch_cache, forks):
    """`together("finetune", flags, [more for each process])` starts the command as often as there is more.

    Each is the process that works, unless ``watched`` has it start that one and watch it, as a person's does.
    What ``real`` numbers starts is no fork: a child of the process that watches it.
    """
    started = []

    def begin(name, flags, more, devices=2, under=None, at=None, watched=False, real=None):
        where = "host0:1234" if at else address()
        flags_of_xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        env = tiny.environment(scratch_cache, XLA_FLAGS=flags_of_xla)
        env |= {} if watched else {WORKER: "1"}
        for number, each in enumerate(more):
            words = [*tiny.module(name), *map(str, flags)]
            python = sys.executable
            if under == "slurm":
                env |= slurm_step(len(more), number)
            elif under == "tpu":
                env |= tpu_slice(len(more), number, where)
                words += ["--coordinator", "auto"]
                python = tiny.TPU_PYTHON
            else:
                words += map(str, place(where, len(more), number))
            words += map(str, each)
            if at or under == "tpu":
                line = [*(at[number] if at else ()), python, "-m", *words]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                started.append(subprocess.Popen(line, **pipes, text=True, env=env))
            else:
                assert forks.can_start(env)
                started.append(forks.start(words, env, starts_forks=number != real))
        return started

    yield begin
    for process in started:
        process.kill()


def slurm_step(processes: int, number: int) -> dict[str, str]:
    """What srun sets, from which JAX makes the address."""
    step = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "STEP_ID": 1}
    step |= {"NTASKS": processes, "STEP_NUM_TASKS": processes}
    step |= {"PROCID": number, "LOCALID": number}
    return {f"SLURM_{name}": str(value) for name, value in step.items()}


def tpu_slice(processes: int, number: int, where: str) -> dict[str, str]:
    """What GKE sets for a slice of several hosts, and what has JAX believe in a TPU."""
    return {
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * processes),
        "TPU_WORKER_ID": str(number),
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": where.partition(":")[2],
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }


@pytest.fixture
def two_hosts(tmp_path):
    """What to write before a command to start it on host0 or on host1: namespaces with a cable between them.

    Each has its own network and name; as in Debian's /etc/hosts its own name is a loopback address.
    """
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "mount", "hostname"))):
        pytest.skip("two hosts are made by root, with ip, unshare, mount and hostname")
    names = [f"adapt-{os.getpid()}-{number}" for number in range(2)]
    say = lambda line: subprocess.run(
        ["ip", *line.split()], capture_output=True, text=True, check=True
    )
    words = []
    try:
        for name in names:
            say(f"netns add {name}")
        say(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
        for number, name in enumerate(names):
            say(f"-n {name} address add 10.77.0.{number + 1}/24 dev cable")
            say(f"-n {name} link set cable up")
            say(f"-n {name} link set lo up")
            known = tmp_path / f"{name}.hosts"
            known.write_text(
                f"127.0.0.1 localhost\n127.0.1.1 host{number}\n10.77.0.{2 - number} host{1 - number}\n"
            )
            enter = f'hostname host{number} && mount --bind {known} /etc/hosts && exec "$@"'
            words.append(
                [
                    "ip",
                    "netns",
                    "exec",
                    name,
                    "unshare",
                    "--uts",
                    "--mount",
                    "sh",
                    "-c",
                    enter,
                    "sh",
                ]
            )
            subprocess.run([*words[-1], "true"], capture_output=True, text=True, check=True)
        yield words
    except subprocess.CalledProcessError as fault:
        pytest.skip(f"no namespaces can be made here: {fault.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ends(processes):
    """(status, stdout, stderr) of each."""
    done = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *words) for process, words in zip(processes, done, strict=True)]


def flags_of(inputs, out, *more):
    data = (
        "--checkpoint",
        inputs.checkpoint("bert_mlm_tied", blocks=1),
        "--train",
        inputs.train,
        "--test",
        inputs.test,
    )
    rates = ("--learning-rate", 0.003, "--head-learning-rate", 0.01, "--validation", inputs.test)
    return [
        *data,
        *rates,
        "--batch-size",
        8,
        "--epochs",
        1,
        "--patience",
        0,
        "--dropout",
        0,
        "--out",
        out,
        *more,
    ]


def run_here(module, *flags):
    """The same command in this process, which has one device: starting another takes longer."""
    config = read_flags(module.Config, "adapt", None, list(map(str, flags)))
    return module.main(config)


def losses(out):
    return [
        (line["step"], line["loss"]) for line in tiny.lines(out / "metrics.jsonl") if "loss" in line
    ]


def test_a_run_of_two_processes_and_its_resumption_on_one_device(inputs, together, tmp_path):
    """Full fine-tuning, stopped; the cached top block; each against the same run on one device."""
    both, one = tmp_path / "both", tmp_path / "one"
    sharded_flags = ("--mesh", "data=2,fsdp=2")
    flags = flags_of(inputs, both, "--stop-after", 2, *sharded_flags)
    found = ends(together("finetune", flags, [(), ()], watched=True))
    assert [status for status, *_ in found] == [0, 0], found
    assert found[1][1] == ""  # the first process alone speaks
    run_here(finetune, *flags_of(inputs, both, "--resume"))
    run_here(finetune, *flags_of(inputs, one))
    assert (
        relative_error([loss for _, loss in losses(both)], [loss for _, loss in losses(one)]) < 1e-4
    )
    assert len(losses(both)) == len(losses(one))


def test_two_hosts_whose_names_stand_for_themselves_train_as_one_does(
    inputs, two_hosts, together, command, tmp_path
):
    flags = lambda name: flags_of(
        inputs, tmp_path / name, "--strategy", "top:1", "--epochs", 1, "--log-every", 1
    )
    found = ends(together("finetune", flags("both"), [(), ()], devices=1, at=two_hosts))
    assert [status for status, *_ in found] == [0, 0], found
    two = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    assert command("finetune", *flags("one"), XLA_FLAGS=two).returncode == 0
    assert (
        relative_error(
            [loss for _, loss in losses(tmp_path / "both")],
            [loss for _, loss in losses(tmp_path / "one")],
        )
        < 1e-6
    )


def test_two_processes_fill_one_cache(inputs, together, tmp_path):
    cached = ("--strategy", "top:1", "--cache", "on")
    found = ends(
        together("finetune", flags_of(inputs, tmp_path / "both", *cached), [(), ()], devices=1)
    )
    assert [status for status, *_ in found] == [0, 0], found
    uncached = ("--strategy", "top:1", "--cache", "off")
    run_here(finetune, *flags_of(inputs, tmp_path / "one", *uncached))
    rows = [losses(tmp_path / name) for name in ("both", "one")]
    assert relative_error([loss for _, loss in rows[0]], [loss for _, loss in rows[1]]) < 1e-4
    result = json.loads((tmp_path / "both" / "result.json").read_text())
    assert (
        result["cache"]["bytes"] > 0
        and result["frozen_digest_before"] == result["frozen_digest_after"]
    )


@pytest.mark.parametrize("under", ["slurm", pytest.param("tpu", marks=tiny.with_libtpu)])
def test_each_process_extracts_its_part(inputs, together, tmp_path, under):
    data = ["--checkpoint", inputs.checkpoint("bert_mlm_tied"), "--data", inputs.train]
    found = ends(together("extract", [*data, "--out", tmp_path / "both"], [(), ()], under=under))
    assert [status for status, *_ in found] == [0, 0], found
    run_here(extract, *data, "--out", tmp_path / "one")
    index = json.loads((tmp_path / "both" / "index.json").read_text())
    parts = [np.load(tmp_path / "both" / each["file"]) for each in index["files"]]
    assert [each["rows"] for each in index["files"]] == [[0, 16], [16, 32]]
    np.testing.assert_allclose(
        np.concatenate(parts), np.load(tmp_path / "one" / "features.npy"), atol=1e-5
    )


@pytest.mark.parametrize(
    ("victim", "by", "whom"),
    [(0, "SIGKILL", "worker"), (1, "SIGKILL", "watcher"), (1, "SIGTERM", "watcher")],
)
def test_a_process_that_dies_ends_the_run_in_one_line_and_resume_goes_on(
    inputs, together, tmp_path, victim, by, whom
):
    flags = flags_of(inputs, tmp_path / "run", "--epochs", 400, "--log-every", 1, "--save-every", 4)
    # Linux ends a child with the process that watches it, and no fork.
    real = victim if (by, whom) == ("SIGKILL", "watcher") else None
    pair = together("finetune", flags, [(), ()], devices=1, watched=True, real=real)
    until = time.monotonic() + 120
    while not ((tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) > 8):
        assert time.monotonic() < until and all(process.is_running() for process in pair), (
            "it never began to train"
        )
        time.sleep(0.1)
    worker = subprocess.run(
        ["pgrep", "-P", str(pair[victim].pid)], capture_output=True, text=True
    ).stdout
    os.kill(int(worker) if whom == "worker" else pair[victim].pid, signal.Signals[by])
    found = ends(pair)
    status, _, words = found[1 - victim]
    assert status == 2
    assert not any(
        log in words + found[victim][2] for log in ("[Gloo]", "tasks have crashed", "Traceback")
    ), found
    assert [
        line for line in words.splitlines() if "another process of this run has ended" in line
    ], words
    assert len([line for line in words.splitlines() if line.startswith("error:")]) == 1, words
    steps = len(losses(tmp_path / "run"))
    assert run_here(finetune, *flags, "--resume", "--stop-after", steps + 4) == {}
    assert losses(tmp_path / "run")[-1][0] == steps + 4


def one_line(words):
    found = [line for line in words.splitlines() if line.strip()]
    assert len(found) == 1 and found[0].startswith("error:"), words
    return found[0]


def test_a_port_that_is_taken_is_one_line(inputs, command, tmp_path):
    with socket.create_server(("localhost", 0)) as other:
        where = f"localhost:{other.getsockname()[1]}"
        place = ("--coordinator", where, "--processes", 2, "--process-id", 0)
        done = command("finetune", *flags_of(inputs, tmp_path / "run"), *place)
    assert done.returncode == 2
    assert f"--coordinator {where}: process 0 cannot listen at port" in one_line(done.stderr)


def test_processes_that_disagree_say_so(inputs, together, tmp_path):
    flags = flags_of(inputs, tmp_path / "run")
    found = ends(together("finetune", flags, [(), ("--seed", 1)], devices=1, watched=True))
    assert [status for status, *_ in found] == [2, 2]
    assert "disagree on their settings: --seed is 0 here" in one_line(found[0][2])
    assert "disagree on their settings: --seed is 1 here" in one_line(found[1][2])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def refused_here(here, monkeypatch):
    """`refused_here("--epochs", 0)` is the one line with which finetune ends in this process."""
    async_dispatch = jax.config.values["jax_cpu_enable_async_dispatch"]
    monkeypatch.setenv("NPROC", os.environ.get("NPROC", "64"))

    def run(*flags: object) -> str:
        done = here("finetune", *flags)
        assert done.returncode == 2
        return one_line(done.stderr)

    yield run
    jax.config.update("jax_cpu_enable_async_dispatch", async_dispatch)


def place(where: object, processes: int, number: int, *more: object) -> tuple[object, ...]:
    """The flags that say where a process of several is."""
    return ("--coordinator", where, "--processes", processes, "--process-id", number, *more)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--coordinator", "localhost:9"), "go together"),
        (("--process-id", 0), "go together"),
        (place("localhost", 2, 1), "must be HOST:PORT"),
        (place("localhost:99999", 2, 0), "a port below 65536"),
        (place("localhost:9", 2, 0, "--join-timeout", 0), "at least 1 second"),
        (place("localhost:9", 2, 2), "must be from 0 to"),
        (("--mesh", "fsdp=3"), "takes 3 devices and there is 1"),
        (("--mesh", "model=1"), "no axis 'model'"),
    ],
)
def test_flags_of_a_place_that_make_no_sense_are_one_line(
    inputs, refused_here, tmp_path, flags, says
):
    assert says in refused_here(*flags_of(inputs, tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--coordinator", "auto"), "sees no SLURM step, Kubernetes job or Cloud TPU here"),
        (place("localhost:9", 2, 1, "--join-timeout", 2), "does not answer within 2 s"),
        (place("localhost:7634", 2, 0, "--join-timeout", 3), "not all 2 processes"),
    ],
)
def test_what_cannot_be_joined_is_one_line(inputs, command, tmp_path, flags, says):
    done = command("finetune", *flags_of(inputs, tmp_path / "run"), *flags)
    assert done.returncode == 2
    assert says in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_in_a_kubernetes_job_the_line_says_what_to_install(monkeypatch):
    fault = ValueError("coordinator_address should be defined.")
    assert "adapt[kubernetes]" not in reason(fault)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "pip install -e '.[kubernetes]'" in reason(fault)
