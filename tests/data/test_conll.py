"""Files with a word a line are read as they are published, and a bad line is named."""

from pathlib import Path

import pytest

from adapt.data.tables import chunks, read
from adapt.errors import DataError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


def columns(path: Path) -> dict[str, list]:
    table = read(path)
    (content,) = chunks(table, table.columns)
    return content


CONLL_2003 = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- O O

LONDON NNP B-NP B-LOC
"""
WORDS = [["EU", "rejects"], ["Peter", "Blackburn"], ["LONDON"]]
TAGS = [["B-ORG", "O"], ["B-PER", "I-PER"], ["B-LOC"]]


@pytest.mark.parametrize("name", ["a.conll", "a.CONLL", "a.iob", "a.iob2", "a.bio", "a.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_2003_is_read_as_it_is_published(file, name, end):
    path = file(name, CONLL_2003.replace("\n", end))
    content = columns(path)
    assert content["text"] == content["1"] == WORDS
    assert content["label"] == content["4"] == TAGS
    assert content["2"] == [["NNP", "VBZ"], ["NNP", "NNP"], ["NNP"]]
    assert list(content) == ["text", "label", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "content",
    [
        "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\nBlackburn\tI-PER\n\n\n\nLONDON\tB-LOC",
        "EU B-ORG\nrejects O \n \nPeter  B-PER\nBlackburn\tI-PER\n\nLONDON B-LOC\n",
        "\ufeffEU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\n\nLONDON B-LOC",
    ],
)
def test_two_columns_with_tabs_or_spaces(file, content):
    found = columns(file("a.conll", content))
    assert (found["text"], found["label"]) == (WORDS, TAGS)


def test_a_column_with_tabs_keeps_its_spaces(file):
    found = columns(file("a.conll", "New York\tB-LOC\n1\u00a0000\tO\n"))
    assert found["text"] == [["New York", "1\u00a0000"]]
    found = columns(file("b.conll", "1\u00a0000 O\nx\u2028y O\n"))
    assert found["text"] == [["1\u00a0000", "x\u2028y"]]


def test_comments_are_no_words_and_words_with_a_hash_are(file):
    content = "# sent_id = 3\n# text = # EU #\n# O\nEU B-ORG\n#tag O\n# O\n\n# id 77 domain=x\n#one B-LOC\n"
    found = columns(file("a.conll", content))
    assert found["text"] == [["#", "EU", "#tag", "#"], ["#one"]]
    found = columns(file("b.conll", "#first\tO\n#second\tO\n"))
    assert found["text"] == [["#first", "#second"]]
    found = columns(file("c.conll", "#love=life\tO\nyou\tO\n\n#id\tO\n\n# id\tO\n"))
    assert found["text"] == [["#love=life", "you"], ["#id"], ["# id"]]
    found = columns(file("d.conll", "#love=life O\n#id O\n"))
    assert found["text"] == [["#love=life", "#id"]]


def test_conllu_has_its_own_columns(file):
    rows = [
        "# newdoc id = n01",
        "# text = vamonos al mar",
        "1-2\tvamonos\t" + "\t".join("_" * 8),
        "1\tvamos\tir\tVERB\t" + "\t".join("_" * 6),
        "2\tnos\tnosotros\tPRON\t" + "\t".join("_" * 6),
        "2.1\tla\t" + "\t".join("_" * 8),
        "",
    ]
    found = columns(file("a.conllu", "\n".join(rows)))
    assert found["text"] == found["form"] == [["vamos", "nos"]]
    assert found["label"] == found["upos"] == [["VERB", "PRON"]]
    assert found["lemma"] == [["ir", "nosotros"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("EU B-ORG\n\na b c\n", "line 3 has 3 fields, and the first word of the file has 2"),
        ("EU\tB-ORG\nNew York O\n", "line 2 has 1 fields, .* has 2, with tabs between them"),
        ("EU\tB-ORG\nYork\t\n", "line 2: field 2 is blank"),
        ("-DOCSTART-\n\nEU\nBrussels\n", "line 3 has one field: a word and its tag"),
        ("-DOCSTART- -X- O\n\n", "has no words"),
        ("EU B-ORG\n# a comment within\n", "line 2 has 4 fields"),
        ("When|WRB|O he|PRP|O\nleft|VBD|O\n", "line 2 has 1 fields"),
    ],
)
def test_a_bad_line_is_named(file, content, said):
    with pytest.raises(DataError, match=f"a.conll: {said}|a.conll {said}"):
        read(file("a.conll", content))


def test_conllu_of_another_width_is_refused(file):
    with pytest.raises(DataError, match=r"line 1 has 2 fields, and a word of CoNLL-U has 10"):
        read(file("a.conllu", "EU\tB-ORG\n"))


@pytest.mark.parametrize(
    "content",
    [
        "a good film\na dull one\n",
        "EU NNP\nrejects VBZ\n\nPeter NNP\n",  # parts of speech may be anything
        "EU B-ORG\nrejects O\n",  # no blank line
        "EU B-ORG\n\nPeter B-PER\n",  # nothing outside
        "type O\n\nA B\nThis is a type O\n",
    ],
)
def test_other_text_files_are_no_tables(file, content):
    with pytest.raises(DataError, match="of no known format"):
        read(file("a.txt", content))


def test_a_folder_may_hold_the_parts(file, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}.conll").write_text(f"{part} B-X\n. O\n", "utf-8")
    (table,) = chunks(read(f"{folder}:test"), ["text"])
    assert table["text"] == [["test", "."]]
