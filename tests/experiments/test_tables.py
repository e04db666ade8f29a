"""The tables that the pages include, as the commands write them, from figures nobody measured."""

from pathlib import Path
from typing import Any

from experiments.benchmark import (
    benchmark,
    growth,
    speed_report,
    tuning,
    whole_runs,
    whole_runs_report,
)
from experiments.benchmark.aot import compile_check
from experiments.benchmark.table_files import machine_text

MACHINE = {"cpu": "a CPU", "cores": 2, "date": "2026-11-24T10:00:00Z"}
LIBRARIES = {
    "adapt": {"python": "3.11.1", "jax": "0.10.2", "flax": "0.12.0"},
    "torch": {"python": "3.12.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "keras": {"keras-hub": "0.32.0", "jax": "0.9.0"},
}
HERE = {"machine": MACHINE, "libraries": LIBRARIES}
VERSIONS = "jax 0.10.2, torch 2.13.0, transformers 5.23.0, keras-hub 0.32.0"


def speed_row(job: str, side: str, name: str, median: float, *ratio: float) -> dict[str, Any]:
    row = {"job": job, "side": side, "name": name, "median": median}
    return row | dict(zip(("ratio", "ratio_least", "ratio_most"), ratio, strict=False))


SPEEDS = {
    "summary": [
        speed_row("train", "adapt", "adapt", 114.94),
        speed_row("train", "torch", "transformers + torch", 38.71, 2.9, 2.2, 3.184),
        speed_row("train", "keras", "keras-hub on JAX", 37.5, 3.05, 2.12, 3.65),
        speed_row("extract", "adapt", "adapt", 515.4),
        speed_row("extract", "torch", "sentence-transformers", 214.2, 2.37, 2.22, 2.54),
        speed_row("rate", "adapt", "JAX", 449.3),
        speed_row("rate", "torch", "torch", 204.9, 2.19, 2.15, 2.21),
    ],
    "cosines": {"torch": {"mean": 0.99982, "least": 0.999}},
    "rounds": [{"round": number} for number in (1, 1, 2, 2, 3, 3)],
    **HERE,
}


def test_steps_and_extraction(tmp_path):
    """No path of the machine that measured is in them."""
    config = benchmark.Config(
        whole=True, peers=Path("/somewhere/python"), out=tmp_path / "out", tables=tmp_path / "new"
    )
    speed_report.write_tables(config, 32, 10568, SPEEDS)
    assert (tmp_path / "new/steps.md").read_text() == (
        "Source: `python -m experiments.benchmark --whole`. minilm on `reviews`, float32, "
        "batches of 32; medians of 3 rounds in turn (least to most). "
        f"2 cores of a CPU, 2026-11-24; {VERSIONS}.\n"
        "\n"
        "| job | adapt | peer | ratio |\n"
        "| --- | --- | --- | --- |\n"
        "| full fine-tuning, examples/s | 114.9 | transformers + torch 38.7 "
        "| 2.90 (2.20 to 3.18) |\n"
        "|  |  | keras-hub on JAX 37.5 | 3.05 (2.12 to 3.65) |\n"
        "| float32 matrix products, GFLOP/s | JAX 449 | torch 205 | 2.19 (2.15 to 2.21) |\n"
    )
    assert (tmp_path / "new/extraction.md").read_text() == (
        "Source: `python -m experiments.benchmark --whole`. minilm on `reviews`, float32; "
        "medians of 3 rounds in turn (least to most). "
        f"2 cores of a CPU, 2026-11-24; {VERSIONS}.\n"
        "\n"
        "| job | adapt | peer | ratio | cosine to adapt's vectors |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| extraction of 10,568 sentences, a second | 515 | sentence-transformers 214 "
        "| 2.37 (2.22 to 2.54) | 0.9998 (least 0.9990) |\n"
    )


def test_a_side_without_peers_has_rows_of_its_own(tmp_path):
    alone = SPEEDS | {"summary": [row for row in SPEEDS["summary"] if row["side"] == "adapt"]}
    speed_report.write_tables(benchmark.Config(tables=tmp_path), 32, 2048, alone)
    assert "| full fine-tuning, examples/s | 114.9 |  |  |\n" in (tmp_path / "steps.md").read_text()


def test_nothing_is_written_by_default():
    speed_report.write_tables(benchmark.Config(), 32, 2048, SPEEDS)
    whole_runs_report.write_tables(whole_runs.Config(), {}, 8000)


def test_whole_runs(tmp_path):
    def row(strategy: str, peer: str, peer_seconds: float, **ratios: float) -> dict[str, Any]:
        wall = {"full": 288.2, "frozen": 23.7}[strategy]
        return {
            "strategy": strategy,
            "peer": peer,
            "seconds": wall,
            "peer_seconds": peer_seconds,
        } | ratios

    result = {
        "adapt": {
            "full": {"first": {"wall_least": 280.4, "wall_most": 290.1}},
            "frozen": {"first": {"wall_least": 21.9, "wall_most": 25.2}},
        },
        "table": [
            row("full", "transformers + torch", 794.0, ratio=2.75, ceiling=6.0, steps_ratio=2.9),
            row("full", "keras-hub on JAX", 825.0, ratio=2.86, ceiling=6.3, steps_ratio=3.04),
            row(
                "frozen",
                "transformers + torch",
                257.0,
                ratio=10.7,
                ceiling=21.2,
                steps_ratio=442.4,
                second_ratio=163.8,
            ),
        ],
        "rounds": [{"round": number} for number in (1, 2, 3, 4, 5)],
        **HERE,
    }
    whole_runs_report.write_tables(whole_runs.Config(tables=tmp_path), result, 8000)
    assert (tmp_path / "whole_runs.md").read_text() == (
        "Source: `python -m experiments.benchmark.whole_runs`. minilm on `reviews` "
        "(8,000 training examples), batches of 32, float32, dropout where a layer trains, "
        f"5 epochs. 2 cores of a CPU, 2026-11-24; {VERSIONS}.\n"
        "\n"
        "| strategy | against | adapt, s (least to most of 5) | peer, s | ratio | ceiling "
        "| steps alone | second run |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| full | transformers + torch | 288 (280 to 290) | 794 | 2.8 | 6.0 | 2.9 |  |\n"
        "| full | keras-hub on JAX | 288 | 825 | 2.9 | 6.3 | 3.0 |  |\n"
        "| frozen | transformers + torch | 24 (22 to 25) | 257 | 10.7 | 21.2 | 442 | 164 |\n"
    )


def test_growth():
    def run(examples: int, epochs: int, encode: float, train: float, memory: float) -> dict:
        seconds = {"encode": encode, "train": train + 5.0, "compile": 5.0, "evaluate": 0.2}
        size = {"examples": examples, "epochs": epochs, "memory_mb": memory}
        return size | {"seconds": seconds, "wall": 20.0}

    result = {
        "examples": [run(1000, 1, 2.8, 1.2, 846.4)],
        "epochs": [run(2000, 8, 0.1, 21.2, 1014.0)],
        "machine": MACHINE,
        "libraries": {"adapt": LIBRARIES["adapt"]},
    }
    assert growth.growth_table(whole_runs.Config(growth=True), result) == (
        "Source: `python -m experiments.benchmark.whole_runs --growth`. minilm on `reviews`, "
        "`top:1` with the cache, compiling left out of the seconds. "
        "2 cores of a CPU, 2026-11-24; jax 0.10.2.\n"
        "\n"
        "| examples | epochs | encode, s | train, s | RssAnon, MB |\n"
        "| ---: | ---: | ---: | ---: | ---: |\n"
        "| 1,000 | 1 | 2.8 | 1.2 | 846 |\n"
        "| 2,000 | 8 | 0.1 | 21.2 | 1,014 |\n"
    )


def test_tuning():
    """A ratio of which the rounds disagree is not said."""
    base = [1.0, 1.0, 1.0]
    result = {
        "as it is": {"seconds": base, "ratio": 1.0},
        "packed rows": {"seconds": [2.1, 2.1, 2.2], "ratio": 2.1},
        "blocks unrolled": {"seconds": [1.2, 0.9, 1.18], "ratio": 1.18},
        "state donated": {"seconds": [0.8, 0.9, 0.7], "ratio": 0.8},
    }
    config = tuning.Config(only=("packed rows", "blocks unrolled", "state donated"))
    text = tuning.tuning_table(config, result, "2 cores of a CPU, 2026-11-24", LIBRARIES["adapt"])
    assert text == (
        "Source: `python -m experiments.benchmark.tuning --only 'packed rows' 'blocks unrolled' "
        "'state donated'`. minilm on `reviews:train`, full, batches of 32, float32. "
        "2 cores of a CPU, 2026-11-24; jax 0.10.2.\n"
        "\n"
        "| choice | against | speed |\n"
        "| --- | --- | --- |\n"
        "| packed rows | one example a row, padded to the longest | 2.1 times |\n"
        "| blocks unrolled | a scan over stacked blocks "
        "| no difference that this machine could resolve |\n"
        "| state donated | not donated | 0.8 times |\n"
    )


def test_compiled_steps():
    case = {"mesh": "fsdp=4", "remat": "block", "batch_size": 128, "tokens": 512}
    found = {
        "case": case,
        "compiler": "libtpu 0.0.42.1, jax 0.10.2",
        "machine": MACHINE,
        "used": 2.07 * 2**30,
        "limit": 15.75 * 2**30,
        "fits": True,
        "flops": 4.0,
        "flops_model": 3.0,
        "collectives": [{"sent": 500 * 2**20}, {"sent": 52.6 * 2**20}],
        "least": 0.916,
        "kernel_seconds": 0.1234,
        "compile_seconds": 96.2,
    }
    refused = {name: found[name] for name in ("case", "compiler", "limit", "compile_seconds")}
    refused |= {"machine": MACHINE | {"date": "2026-11-25"}, "used": 20 * 2**30, "fits": False}
    results = {
        ("bert-base", "full", "v5e:2x2"): found,
        ("gpt2-xl", "full", "v5e:2x2"): refused,
    }
    config = compile_check.Config(table=True, topology="v5e:2x2")
    assert compile_check.aot_table(config, results) == (
        "Source: `python -m experiments.benchmark.aot.compile_check --topology v5e:2x2 --table`. "
        "bfloat16, blocks as a loop. 2 cores of a CPU, 2026-11-25; libtpu 0.0.42.1, jax 0.10.2.\n"
        "\n"
        "| model | trains | slice | mesh | remat | examples | GiB a chip | products | MiB sent "
        "| computing | roofline | compiled |\n"
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| bert-base | full | v5e:2x2 | fsdp=4 | block | 128 x 512 | 2.07 | 1.333 | 552.6 "
        "| 91.6% | 123 ms | 96 s |\n"
        "| gpt2-xl | full | v5e:2x2 | fsdp=4 | block | 128 x 512 | does not fit, by 4.25 |  |  "
        "|  |  | 96 s |\n"
    )


def test_one_core_is_no_cores():
    assert machine_text(MACHINE) == "2 cores of a CPU, 2026-11-24"
    assert machine_text({**MACHINE, "cores": 1}) == "1 core of a CPU, 2026-11-24"
