"""Archives of npm and Debian: downloaded once, verified, only what is named kept.

Toys stand for registry and client.
"""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from adapt.data.bundled import packages
from adapt.errors import AssetError
from adapt.pretrained import assets
from adapt.pretrained.assets import Asset


@pytest.fixture
def client(tmp_path, monkeypatch):
    """`client("npm", "...")` puts a shell script in npm's place."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def npm_toy(tmp_path: Path, client) -> Asset:
    """An npm package "toy" of two files, one of which is to be kept."""
    (tmp_path / "package").mkdir()
    for name in ("data.txt", "index.js"):
        (tmp_path / "package" / name).write_text(name)
    archive = tmp_path / "toy-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "package", "package")
    client("npm", f'[ "$1 $2" = "pack toy@1.0.0" ] && cp {archive} .')
    return Asset(
        "toy@1.0.0", hashlib.sha256(archive.read_bytes()).hexdigest(), "package/", ("data.txt",), 1
    )


def debian_toy(tmp_path: Path, client) -> Asset:
    """A Debian package "toy" with one file."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    (tmp_path / "tree/DEBIAN").mkdir(parents=True)
    (tmp_path / "tree/usr/share/toy").mkdir(parents=True)
    (tmp_path / "tree/DEBIAN/control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nDescription: toy\n"
        "Maintainer: nobody <nobody@example.org>\n"
    )
    (tmp_path / "tree/usr/share/toy/data.txt").write_text("data.txt")
    archive = tmp_path / "toy_1_all.deb"
    subprocess.run(
        ["dpkg-deb", "--build", tmp_path / "tree", archive], check=True, capture_output=True
    )
    client("apt-get", f'[ "$1 $2" = "download toy" ] && cp {archive} .')
    return Asset("toy", hashlib.sha256(b"data.txt").hexdigest(), "usr/share/toy", ("data.txt",), 1)


SOURCES = {"npm": (packages.from_npm, npm_toy), "apt-get": (packages.from_debian, debian_toy)}


@pytest.mark.parametrize("source", SOURCES)
def test_an_archive_is_downloaded_once_and_only_what_is_named_is_kept(source, tmp_path, client):
    fill, toy = SOURCES[source]
    asset = toy(tmp_path, client)
    folder = assets.fetch_asset("toy", asset, fill)
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [
        ("data.txt", "data.txt")
    ]
    assert list(assets.cache_folder().iterdir()) == [folder]
    client(source, "exit 1")
    assert assets.fetch_asset("toy", asset, fill) == folder


@pytest.mark.parametrize("source", SOURCES)
def test_a_damaged_archive_is_refused_and_leaves_nothing(source, tmp_path, client):
    fill, toy = SOURCES[source]
    asset = dataclasses.replace(toy(tmp_path, client), sha256="0" * 64)
    with pytest.raises(AssetError, match=r"has SHA-256 .*, not 000000000000\.\.\.: [^\n]*$"):
        assets.fetch_asset("toy", asset, fill)
    assert not list(assets.cache_folder().iterdir())


FAULTS = {
    "npm": (
        "npm error code E404\nnpm error 404 Not Found",
        "npm error code E404; npm must reach its registry once",
    ),
    "apt-get": (
        "E: Unable to locate package toy",
        r"E: Unable to locate package toy; apt-get must .*apt-get update\)",
    ),
}


@pytest.mark.parametrize("source", FAULTS)
def test_a_registry_that_can_not_be_reached_is_one_line(source, tmp_path, client):
    said, message = FAULTS[source]
    client(source, f"echo '{said}' >&2\nexit 1")
    asset = Asset("toy", "0" * 64, "", ("data.txt",), 1)
    with pytest.raises(AssetError, match=f"^cannot download toy: {message}[^\n]*$"):
        assets.fetch_asset("toy", asset, SOURCES[source][0])


@pytest.mark.parametrize("source", SOURCES)
def test_a_machine_without_the_client_is_one_line(source, tmp_path, client, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    asset = Asset("toy", "0" * 64, "", ("data.txt",), 1)
    with pytest.raises(
        AssetError, match=f"^cannot download toy: there is no {source} here; {source} must [^\n]*$"
    ):
        assets.fetch_asset("toy", asset, SOURCES[source][0])
