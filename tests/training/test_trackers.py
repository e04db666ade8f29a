"""Trackers get every number that metrics.jsonl has, by the real packages, offline."""

import json
import struct
import time

import pytest

import adapt
from adapt.errors import StrategyError
from adapt.training import trackers
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(24), strict=True))
FAST = {"strategy": "frozen", "epochs": 2, "batch_size": 8, "patience": 0}


def scalars(folder) -> dict[tuple[str, int], float]:
    """``{(name, step): value}`` of the event files of a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in folder.glob("events.*"):
        content = path.read_bytes()
        start = 0
        while start < len(content):
            (length,) = struct.unpack("<Q", content[start : start + 8])
            event = event_pb2.Event.FromString(content[start + 12 : start + 12 + length])
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
            start += 12 + length + 4  # a length and a body, each with a checksum
    return found


def test_tensorboard_has_every_number(inputs, tmp_path):
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    checkpoint = inputs.checkpoint("bert_mlm_tied", 1)
    adapt.finetune(
        checkpoint, TEXTS, LABELS, out=out, callbacks=[trackers.tensorboard(out / "tb")], **FAST
    )
    found = scalars(out / "tb")
    logged = set()
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in trackers.grouped(record):
            assert found[name, record["step"]] == pytest.approx(value, rel=1e-6), name
            logged.add((name, record["step"]))
    assert logged == found.keys()
    assert {"train/loss", "validation/accuracy", "rate/head"} <= {name for name, _ in found}


def test_the_flag_of_the_command(inputs, tmp_path):
    pytest.importorskip("tensorboardX")
    from adapt.cli import finetune

    flags = {"checkpoint": inputs.checkpoint("bert_mlm_tied", 1), "train": inputs.train}
    config = finetune.Config(**flags, **FAST, track=("tensorboard",), out=tmp_path / "run")
    finetune.main(config)
    assert ("train/loss", 1) in scalars(tmp_path / "run/tensorboard")


def test_weights_and_biases_offline(inputs, tmp_path):
    pytest.importorskip("wandb")
    tracker = trackers.wandb({"epochs": 2}, project="films", mode="offline", dir=str(tmp_path))
    adapt.finetune(
        inputs.checkpoint("bert_mlm_tied", 1), TEXTS, LABELS, callbacks=[tracker], **FAST
    )
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while b"validation/accuracy" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # a process of its own writes it
    content = log.read_bytes()
    assert b"validation/accuracy" in content and b"train/loss" in content


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_package_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setitem(trackers.PACKAGES, name, "no_such_package")
    with pytest.raises(StrategyError, match="needs the package no_such_package: pip install"):
        getattr(trackers, name)("anywhere")
