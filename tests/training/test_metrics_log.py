"""metrics.jsonl: what was logged comes back, and what a kill or a disk left of a line is told apart."""

import pytest

from adapt.errors import CheckpointError
from adapt.training.metrics_log import MetricsLog, read_records


def test_a_line_without_an_end_is_no_record(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    with log.path.open("a") as file:
        file.write('{"step": 2')
    assert read_records(log.path) == log.records() == [{"step": 1}]


@pytest.mark.parametrize("line", [b"[1]", b"{", b"\xff", b"\0\0"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(CheckpointError, match="line 2 is no record"):
        read_records(path)
