"""The examples in the docstrings of adapt.models run and are true."""

import doctest

import numpy as np
import pytest

from adapt.models import Classifier, config, encoder, model, quantised


@pytest.mark.parametrize(
    "module", [config, encoder, model, quantised], ids=lambda module: module.__name__
)
def test_the_examples_in_the_docstrings_are_true(module):
    result = doctest.testmod(module, extraglobs={"Classifier": Classifier, "np": np})
    assert result.attempted and not result.failed
