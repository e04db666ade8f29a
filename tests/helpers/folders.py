"""The made-up checkpoint folders of tests/references/folders.py, which the recording script has, too."""

import importlib.util
import sys
from types import ModuleType

from tests.helpers import tiny


def load() -> ModuleType:
    """The module: it is no package's, so that it can be run without the library."""
    spec = importlib.util.spec_from_file_location("folders", tiny.REFERENCES / "folders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


FOLDERS = load()
