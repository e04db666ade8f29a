"""What an error says fits on a screen, whatever a damaged file held."""

from adapt.errors import LONGEST_LINE, AdaptError, DataError


def test_a_long_value_loses_its_middle_and_the_mend_stays():
    said = str(DataError(f"row 3: '{'[' * 100_000}' is no label: give it as text"))
    assert said.startswith("row 3: '[[[") and said.endswith("is no label: give it as text")
    assert len(said) <= LONGEST_LINE


def test_a_message_of_many_lines_is_as_it_was():
    diff = "\n  - ".join(["they differ:", *["encoder/block_00/attention/query/kernel"] * 50])
    assert str(AdaptError(diff)) == diff
    assert str(AdaptError()) == ""
