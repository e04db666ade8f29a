"""Folders of data: pictures by class, shards of a table, and what `datasets` saved.

    rows = read_folder(Path("photos"), None)       # columns: image, file and perhaps label

Nothing is guessed from words in names: the class of a picture is the first folder that it lies in,
however deep, and every file is taken, or named with why it is not.
"""

import csv
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adapt.data.formats import ending_of, format_of, stem_of
from adapt.data.text_files import open_text
from adapt.errors import DataError, first_line
from adapt.files import parse_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# What datasets.save_to_disk writes: of one table, and of several parts.
SAVED_TABLE = "state.json"
SAVED_PARTS = "dataset_dict.json"
# A file with a row a picture: the columns beside it, by ``file_name``.
METADATA = ("metadata.csv", "metadata.jsonl")
# Folders and shards of these names are parts of one data set, where all of them are.
PARTS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# How the names of common pictures end. A file that is called so and is none is an error; of any
# other name, Pillow decides.
PICTURES = (".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NUMBERS = re.compile(r"(u?int|float)(8|16|32|64)")  # what `datasets` calls types of numbers
SHOWN = 5  # files that a note names
T = TypeVar("T")


def left_out_note(folder: Path, files: Sequence[Path], why: str) -> None:
    """Say which files were not taken."""
    if not files:
        return
    first = ", ".join(str(file.relative_to(folder)) for file in files[:SHOWN])
    more = ", ..." if len(files) > SHOWN else ""
    noun = "file" if len(files) == 1 else "files"
    logger.warning(f"{folder}: {len(files)} {noun} left out, {why}: {first}{more}")


# Pictures


def picture_columns(folder: Path) -> dict[str, list[Any]]:
    """``image`` (paths), ``file`` (relative to the folder) and, where pictures lie in folders or a
    file says more of them, ``label`` and other columns.

    Hidden files are left out, and so is what Pillow does not open; both are said. Raises
    :class:`DataError` where no picture is left.
    """
    hidden = []
    others = []
    pictures = []
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        inside = file.relative_to(folder)
        if any(part.startswith(".") or part == "__MACOSX" for part in inside.parts):
            hidden.append(file)
        elif str(inside) in METADATA:
            continue
        elif is_picture(file):
            pictures.append(file)
        else:
            others.append(file)
    left_out_note(folder, hidden, "hidden")
    left_out_note(folder, others, "no pictures that Pillow opens")
    if not pictures:
        raise DataError(f"{folder} holds no picture that Pillow opens, and no table")
    names = [str(file.relative_to(folder).as_posix()) for file in pictures]
    columns: dict[str, list[Any]] = {"image": [str(file) for file in pictures], "file": names}
    for name in METADATA:
        if (folder / name).is_file():
            return with_metadata(folder / name, columns)
    labels = [class_of(file.relative_to(folder)) for file in pictures]
    if any(labels):
        columns["label"] = labels
        alone = [file for file, label in zip(pictures, labels, strict=True) if label is None]
        if alone:
            first = ", ".join(file.name for file in alone[:SHOWN])
            logger.warning(
                f"{folder}: {len(alone)} of {len(pictures)} pictures lie in no folder of a class "
                f"and have no label: {first}"
            )
        deep = [file for file in pictures if len(file.relative_to(folder).parts) > 2]
        if deep:
            logger.warning(
                f"{folder}: {len(deep)} of {len(pictures)} pictures lie deeper than in the folder "
                "of a class; the first folder is the class"
            )
    return columns


def is_picture(file: Path) -> bool:
    """Whether Pillow opens a file, whatever it is called."""
    from PIL import Image  # only here: it takes a tenth of a second

    try:
        with Image.open(file):
            return True
    except Exception:
        # Pillow raises what it likes. A broken picture with the name of one is named later, with
        # its row, and not left out.
        return file.suffix.lower() in PICTURES


def class_of(inside: Path) -> str | None:
    """The first folder on the way to a picture; None where it lies in none."""
    return inside.parts[0] if len(inside.parts) > 1 else None


def with_metadata(file: Path, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The pictures that a file lists, in its order, with its other columns.

    Raises :class:`DataError` for a row whose picture is not there. Pictures that no row names are
    left out, and said.
    """
    path_of = dict(zip(columns["file"], columns["image"], strict=True))
    rows = metadata_rows(file)
    if any({"image", "file"} & row.keys() for row in rows):
        raise DataError(f"{file}: the columns image and file are made here: call yours otherwise")
    result: dict[str, list[Any]] = {"image": [], "file": []}
    for number, row in enumerate(rows, 1):
        name = row.get("file_name")
        if name not in path_of:
            raise DataError(f"{file}: row {number}: file_name {name!r} is no picture of its folder")
        result["image"].append(path_of[name])
        result["file"].append(name)
        for column, value in row.items():
            if column != "file_name":
                result.setdefault(column, [None] * (number - 1)).append(value)
        for values in result.values():
            values += [None] * (number - len(values))
    listed = set(result["file"])
    unlisted = [Path(path) for name, path in path_of.items() if name not in listed]
    left_out_note(file.parent, unlisted, f"as {file.name} has no row for them")
    return result


def metadata_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of metadata.csv or metadata.jsonl. Raises :class:`DataError` for what is neither."""
    try:
        with open_text(file, newline="") as lines:
            if file.suffix == ".csv":
                return list(csv.DictReader(lines))
            return [dict(parse_json(line)) for line in lines if line.strip()]
    except DataError:
        raise
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {first_line(error)}") from None


# Parts


def parts_of(names: Sequence[str]) -> bool:
    """Whether these names are those of parts: train and test, say."""
    return len(names) > 0 and all(name.lower() in PARTS for name in names)


def one_part(where: Path | str, parts: Mapping[str, T], split: str | None) -> T:
    """One of several parts by its name, or the only one. ``where`` is what messages call all.

    Raises :class:`DataError` where one has to be named.
    """
    if split is None and len(parts) == 1:
        return next(iter(parts.values()))
    if split is None or split not in parts:
        raise in_parts(where, parts)
    return parts[split]


def in_parts(where: Path | str, names: Iterable[str]) -> DataError:
    """The error of data of which one part has to be named."""
    known = ", ".join(f"{where}:{name}" for name in names)
    return DataError(f"{where} is in parts, so one has to be named: {known}")


def part_folder(folder: Path, split: str | None) -> Path:
    """The folder of one part, where a folder holds parts and nothing else; the folder itself
    elsewhere.

    Raises :class:`DataError` where a part has to be named, or is not there.
    """
    inside = not_hidden(folder)
    folders = [path.name for path in inside if path.is_dir()]
    if parts_of(folders):
        folders.sort(key=lambda name: PARTS.index(name.lower()))
    if split is None:
        if parts_of(folders) and len(folders) == len(inside):
            raise in_parts(folder, folders)
        return folder
    if split in folders:
        return folder / split
    known = f"; it has {', '.join(folders)}" if folders else ""
    raise DataError(f"{folder} has no part '{split}'{known}")


def not_hidden(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, by name."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


# Shards of a table


def table_files(folder: Path) -> list[Path]:
    """The data files that lie in a folder, in the order of their names."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return [path for path in files if format_of(path) and path.name not in METADATA]


def shards(folder: Path, split: str | None) -> list[Path]:
    """The files of a folder that are one table, or one part of it.

    ``train-00000-of-00002.parquet`` is a shard of the part ``train``; so is ``train.csv`` where all
    files are called by parts. Raises :class:`DataError` where a part has to be named or is not
    there, and for files of several formats.
    """
    files = table_files(folder)
    check_no_pictures(folder, files[0])
    left_out_note(folder, [path for path in not_hidden(folder) if path not in files], "no tables")
    kinds = sorted({ending_of(path) for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds files of several formats ({', '.join(kinds)}): name one file"
        )
    by_part: dict[str, list[Path]] = {}
    for path in files:
        by_part.setdefault(SHARD.sub("", stem_of(path)), []).append(path)
    if parts_of(list(by_part)):
        return one_part(folder, by_part, split)
    if split is not None:
        raise DataError(f"{folder} has no part '{split}': its files are not called by parts")
    return files


def check_no_pictures(folder: Path, table: Path) -> None:
    """Raise :class:`DataError` for a folder that holds pictures beside a table."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PICTURES and not hidden:
            raise DataError(
                f"{folder} holds a table ({table.name}) and pictures ({path.name}): name the "
                f"table, or call it {METADATA[0]} where it says more of the pictures by file_name"
            )


def joined(
    where: Path, files: Sequence[Path], tables: Sequence["Dataset"], left_out: Mapping[str, str]
) -> tuple["Dataset", dict[str, str]]:
    """(the rows of the tables of ``files``, one after the other; why columns are not among them).

    Columns in ``left_out`` are not read, nor those that some file lacks and those whose types
    differ from file to file; the second result says why, by name, of the latter two. Raises
    :class:`DataError` where no column is left. ``where`` is what messages call all.
    """
    import datasets

    faults = lacking_columns(files, [table.column_names for table in tables])
    names = tables[0].column_names
    kept = [name for name in names if name not in left_out and name not in faults]
    if not kept:
        raise DataError(f"{where}: {next(iter([*left_out.values(), *faults.values()]))}")
    try:
        rows = datasets.concatenate_datasets([table.select_columns(kept) for table in tables])
    except Exception:  # of Arrow, where the types of some column differ
        rows, misfits = joined_by_column(where, files, tables, kept)
        return rows, faults | misfits
    return rows, faults


def lacking_columns(files: Sequence[Path], columns: Sequence[Sequence[str]]) -> dict[str, str]:
    """Why the columns can't be read that some of the files lack, by name."""
    faults: dict[str, str] = {}
    first = columns[0]
    for path, names in zip(files, columns, strict=True):
        for name in set(first) ^ set(names):
            faults.setdefault(
                name,
                f"column '{name}' is not in every file: {path.name} has the columns "
                f"{', '.join(names)}, and {files[0].name} has {', '.join(first)}",
            )
    return faults


def joined_by_column(
    where: Path, files: Sequence[Path], tables: Sequence["Dataset"], names: Sequence[str]
) -> tuple["Dataset", dict[str, str]]:
    """What :func:`joined` gives where the types of some of the columns ``names`` differ."""
    import datasets

    faults = {}
    columns = []
    for name in names:
        of_column = with_common_numbers([table.select_columns([name]) for table in tables], name)
        try:
            columns.append(datasets.concatenate_datasets(of_column))
        except Exception as error:  # of Arrow: the types differ
            faults[name] = misfit(files, of_column, name) or first_line(error)
    if not columns:
        raise DataError(f"{where}: {next(iter(faults.values()))}")
    return datasets.concatenate_datasets(columns, axis=1), faults


def with_common_numbers(tables: list["Dataset"], name: str) -> list["Dataset"]:
    """The same tables, with a column of float64 where its types are several, all of numbers."""
    import datasets

    features = [table.features[name] for table in tables]
    dtypes = {str(getattr(feature, "dtype", "")) for feature in features}
    are_values = all(type(feature) is datasets.Value for feature in features)
    if not are_values or len(dtypes) < 2 or not all(map(NUMBERS.fullmatch, dtypes)):
        return tables
    try:
        return [table.cast_column(name, datasets.Value("float64")) for table in tables]
    except Exception:  # a whole number that is no fraction to the last digit
        return tables


def misfit(files: Sequence[Path], tables: Sequence["Dataset"], name: str) -> str | None:
    """What is said of the first file in which a column has another type than in the first one."""
    types = [str(table.features.arrow_schema.field(name).type) for table in tables]
    for path, kind in zip(files, types, strict=True):
        if kind != types[0]:
            return f"column '{name}' is {types[0]} in {files[0].name} and {kind} in {path.name}"
    return None
