"""``python -m experiments.benchmark.accelerator``.

What this Python lacks is said before anything that would need it is imported.
"""

import sys

from experiments.benchmark.accelerator import needs

if __name__ == "__main__":
    needs.complete(sys.argv[1:])

    from adapt.cli.launch import launch
    from experiments.benchmark.accelerator import command

    launch(command.Config, command.main, "python -m experiments.benchmark.accelerator")
