"""What the host delivers alone: every rate is measured, and told by the tokenizer's."""

import json

import pytest

from adapt.errors import StrategyError
from experiments.benchmark import benchmark, host

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.slow
def test_rates_of_extraction_and_training_stand_by_that_of_the_tokenizer(inputs, tmp_path):
    config = benchmark.Config(
        host=True,
        checkpoint=inputs.checkpoint("bert_mlm_tied"),
        data=inputs.train,
        rounds=2,
        out=tmp_path / "out",
        tables=tmp_path / "tables",
    )
    result = benchmark.main(config)
    assert json.loads((tmp_path / "out/host.json").read_text())["texts"] == result["texts"]
    assert result["tokens_a_batch"] >= 1024
    assert list(result["rates"]) == list(result["median"])
    for rates in result["rates"].values():
        assert len(rates) == 2 and min(rates) > 0
    written = (tmp_path / "tables/host.md").read_text()
    source, _, header, _, *rows = written.strip().splitlines()
    assert source.startswith("Source: `python -m experiments.benchmark ") and "--host" in source
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(host.COLUMNS)
    assert len(rows) == len(result["rates"])


def test_shares_are_of_the_tokenizers_rate():
    rows = host.table_rows(
        {"tokenizer": 100.0, "extraction": 90.0, "training in batches of 32": 1800.0}
    )
    assert [row[2:] for row in rows] == [("1.00", ""), ("0.90", "0.85"), ("18.00", "17")]


@pytest.mark.parametrize("flags", [{"steps": 3}, {"batch_size": 8}, {"whole": True}])
def test_flags_of_other_measurements_do_not_go_with_it(flags, tmp_path):
    with pytest.raises(StrategyError, match="does not go with --host"):
        benchmark.main(benchmark.Config(host=True, out=tmp_path / "out", **flags))
