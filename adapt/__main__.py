"""``python -m adapt NAME``: the commands."""

import importlib
import sys

COMMANDS = ("finetune", "pretrain", "extract", "predict", "export", "probe", "compare", "plan")

if __name__ == "__main__":
    from adapt.cli.launch import launch

    name = sys.argv.pop(1)
    sys.argv[0] = f"adapt {name}"
    command = importlib.import_module(f"adapt.cli.{name}")
    launch(command.Config, command.main)
