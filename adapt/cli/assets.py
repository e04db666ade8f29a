"""Fetch every bundled asset, so that later runs need no network: ``python -m adapt.cli.assets``."""

import sys

from adapt.errors import AdaptError
from adapt.pretrained import assets


def main() -> int:
    """Say in one line for each asset where it is kept; the status of the process."""
    try:
        for name, asset in assets.ASSETS.items():
            is_kept = assets.asset_folder(name, asset).is_dir()
            where = "kept in" if is_kept else f"{asset.megabytes} MB fetched into"
            print(f"{name:10} {where} {assets.fetch(name)}", flush=True)
    except AdaptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
