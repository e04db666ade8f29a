"""Formats of data files, by how their names end."""

from pathlib import Path

# The kinds are those of adapt.data.arrow.write_arrow, and parquet.
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".conll": "conll",
    ".conllu": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".xz")  # of the text formats; Parquet compresses by itself


def format_of(path: Path) -> str | None:
    """The kind of a file by its ending, ``.csv`` or ``.csv.gz``; None for another file."""
    kind = FORMATS.get(ending_of(path))
    if kind == "parquet" and is_compressed(path):
        return None
    return kind


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def without_compression(path: Path) -> Path:
    """The name without ``.gz`` and the like."""
    return path.with_suffix("") if is_compressed(path) else path


def ending_of(path: Path) -> str:
    """How a name ends, in small letters, without ``.gz`` and the like: ``.csv``."""
    return without_compression(path).suffix.lower()


def stem_of(path: Path) -> str:
    """The name without its ending, and without ``.gz`` and the like."""
    return without_compression(path).stem
