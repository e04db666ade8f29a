"""Tables in Markdown."""

from adapt.markdown import markdown_table


def test_the_last_columns_are_numbers_where_that_is_said():
    lines = markdown_table(("a", "b"), [("x", "1")], right=1)
    assert lines == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_a_table_without_numbers():
    assert markdown_table(["a"], []) == ["| a |", "| --- |"]
