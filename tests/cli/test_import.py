"""--import: every command takes modules of one's own."""

import importlib

import pytest

from adapt.__main__ import COMMANDS
from adapt.cli import flags
from adapt.options import ImportOptions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_imports_modules(command):
    config = importlib.import_module(f"adapt.cli.{command}").Config
    assert issubclass(config, ImportOptions)
    assert flags.flag("import_") == "--import"
    assert flags.name_flags("`import` it first", config) == "--import it first"
