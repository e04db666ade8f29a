"""Commands that read from buckets and write to them do what they do on a disk; also after `kill -9`."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from adapt.cli import compare, export, extract, finetune, predict, pretrain, probe
from adapt.errors import OutputError
from adapt.files import to_path
from tests.helpers import buckets, tiny
from tests.helpers.runs import assert_same_run, stored_digest

OUT = to_path("gs://bucket/run")


@pytest.fixture
def flags(bucket) -> dict:
    """4 steps an epoch; the checkpoint and the data are in the bucket."""
    bucket.mkdir(parents=True)
    tiny.checkpoint(bucket / "base", "bert_mlm_tied", 1)
    tiny.write_table(bucket / "train.csv", tiny.sentences(32))
    tiny.write_table(bucket / "test.csv", tiny.sentences(14, seed=1))
    return {
        "checkpoint": "gs://bucket/base",
        "train": "gs://bucket/train.csv",
        "test": "gs://bucket/test.csv",
        "validation": "gs://bucket/test.csv",
        "learning_rate": 0.003,
        "head_learning_rate": 0.01,
        "epochs": 1,
        "batch_size": 8,
        "patience": 0,
    }


def test_a_run_in_a_bucket_stopped_and_resumed_is_that_on_a_disk(flags, bucket, tmp_path, capsys):
    flags |= {"save_every": 2}
    finetune.main(finetune.Config(**flags, out=tmp_path / "disk"))
    finetune.main(finetune.Config(**flags, out=OUT, stop_after=3))
    assert "go on with --resume --out gs://bucket/run" in capsys.readouterr().out
    assert not (bucket / "run/result.json").exists()
    finetune.main(finetune.Config(**flags, out=OUT, resume=True))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == "gs://bucket/run"
    assert_same_run(tmp_path / "disk", bucket / "run")
    names = [
        {path.relative_to(folder).parts[:2] for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "disk", bucket / "run")
    ]
    assert names[0] == names[1]
    finetune.main(finetune.Config(**flags, out=OUT, resume=True))
    assert_same_run(tmp_path / "disk", bucket / "run")


def test_what_a_run_in_a_bucket_predicts_extracts_and_exports(flags, bucket, tmp_path):
    tiny.checkpoint(bucket / "two", "bert_mlm_tied")  # of which the first block is not kept again
    flags |= {"checkpoint": "gs://bucket/two", "strategy": "top:1", "pooling": "cls"}
    finetune.main(finetune.Config(**flags, out=OUT))
    base = json.loads((bucket / "run/model.json").read_text())["base"]
    assert base["source"] == "gs://bucket/two"
    disk = tmp_path / "disk"
    disk.mkdir()
    shutil.copytree(bucket / "run", disk / "run")
    places = {disk: disk / "run", to_path("gs://bucket"): OUT}
    for folder, run in places.items():
        data = "gs://bucket/test.csv"
        predict.main(predict.Config(run=(run,), data=data, out=folder / "p.csv"))
        extract.main(extract.Config(checkpoint=str(run), data=data, out=folder / "features"))
        export.main(export.Config(run=str(run), out=folder / "exported"))
    assert (bucket / "p.csv").read_bytes() == (disk / "p.csv").read_bytes()
    features = [np.load(folder / "features/features.npy") for folder in (disk, bucket)]
    np.testing.assert_array_equal(*features)
    exported = {path.name for path in (bucket / "exported").iterdir()}
    assert exported == {path.name for path in (disk / "exported").iterdir()}
    for name in exported - {"README.md"}:  # which names the run
        assert (bucket / "exported" / name).read_bytes() == (disk / "exported" / name).read_bytes()
    with pytest.raises(OutputError, match=r"the output file gs://bucket/p.csv exists"):
        predict.main(
            predict.Config(
                run=(OUT,), data="gs://bucket/test.csv", out=to_path("gs://bucket/p.csv")
            )
        )


def test_a_run_in_a_bucket_is_replaced_by_its_own_command_alone(flags, bucket):
    finetune.main(finetune.Config(**flags, out=OUT, stop_after=1))
    before = stored_digest(bucket / "run")
    with pytest.raises(OutputError, match="the output folder gs://bucket/run exists"):
        finetune.main(finetune.Config(**flags, out=OUT))
    with pytest.raises(OutputError, match="not a folder that extract wrote"):
        extract.main(
            extract.Config(
                checkpoint="gs://bucket/base", data=flags["test"], out=OUT, overwrite=True
            )
        )
    assert stored_digest(bucket / "run") == before
    finetune.main(finetune.Config(**flags, out=OUT, overwrite=True, seed=1, stop_after=1))
    assert stored_digest(bucket / "run") != before


def test_a_run_is_not_replaced_by_one_that_refers_to_it(flags):
    finetune.main(finetune.Config(**flags, out=OUT, stop_after=1))
    again = {"strategy": "frozen", "overwrite": True, "learning_rate": None}
    other = to_path("gs://bucket/other")
    finetune.main(finetune.Config(**flags | again | {"checkpoint": str(OUT)}, out=other))
    with pytest.raises(
        OutputError, match="gs://bucket/run holds the encoder that gs://bucket/other"
    ):
        finetune.main(
            finetune.Config(**flags | {"checkpoint": str(other)}, out=OUT, overwrite=True)
        )


def test_pre_training_and_a_probe_write_to_a_bucket(flags, bucket):
    (bucket / "text.txt").write_text("\n".join(text for text, _ in tiny.sentences(30)))
    text = {"checkpoint": "gs://bucket/base", "text": "gs://bucket/text.txt", "batch_size": 4}
    pretrain.main(pretrain.Config(**text, steps=4, validate_every=2, out=OUT))
    assert json.loads((bucket / "run/result.json").read_text())["steps"] == 4
    probed = probe.Config(
        checkpoint=str(OUT), data=flags["train"], folds=2, out=to_path("gs://bucket/probe")
    )
    probe.main(probed)
    assert {"config.json", "layers.png", "result.json"} == {
        path.name for path in (bucket / "probe").iterdir()
    }


def test_a_comparison_is_written_to_a_disk():
    with pytest.raises(OutputError, match="`out` gs://bucket/run is in a bucket: give a local"):
        compare.main(compare.Config(out=OUT))


def words_of(flags: dict) -> list[str]:
    words = []
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def test_killed_in_mid_run_and_resumed_is_the_same_run(flags, bucket, tmp_path, scratch_cache):
    flags |= {"epochs": 5, "save_every": 2}
    finetune.main(finetune.Config(**flags, out=tmp_path / "whole"))
    plugin = buckets.write_plugin(tmp_path / "plugin")
    environment = tiny.environment(scratch_cache, PYTHONPATH=f"{tiny.ROOT}{os.pathsep}{plugin}")
    argv = [sys.executable, "-m", "adapt", "finetune", *words_of(flags), "--out", str(OUT)]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            operations = buckets.operations(bucket.parent)
            if operations.count("put bucket/run/checkpoints/index.json") >= 3:
                break
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (bucket / "run/result.json").exists()
    finetune.main(finetune.Config(**flags, out=OUT, resume=True))
    assert_same_run(tmp_path / "whole", bucket / "run")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
@pytest.mark.parametrize("flag", ["--out", "--checkpoint", "--train"])
def test_without_gcsfs_a_command_says_what_to_install(command, tmp_path, flag):
    done = command("finetune", flag, "gs://bucket/run", cwd=tmp_path)
    line = "error: gs://bucket/run needs gcsfs, which is not installed: pip install gcsfs\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not list(Path(tmp_path).iterdir())


def test_another_kind_of_bucket_is_one_line(command, tmp_path):
    done = command(
        "predict", "--run", "s3://b/run", "--data", "x.csv", "--out", "p.csv", cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: s3://b/run: s3:// is not supported, gs:// alone is: copy it" in done.stderr
