"""``python -m experiments.benchmark``."""

from adapt.cli.launch import launch
from experiments.benchmark import benchmark

if __name__ == "__main__":
    launch(benchmark.Config, benchmark.main, "python -m experiments.benchmark")
