"""A checkpoint's faults are named, each planted in two ways, and real checkpoints have none."""

import dataclasses

import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.doctor.cases import CheckpointCase
from adapt.doctor.checkpoint import SENTENCE, case_mismatch, special_tokens_missing
from adapt.doctor.checks import CHECKS, run_checks
from adapt.pretrained.tokenizer import Tokenizer
from adapt.pretrained.tokenizer_files import in_lower_case


def found(pretrained):
    findings = run_checks(CHECKS["checkpoint"], CheckpointCase(pretrained=pretrained))
    return {finding.check: finding for finding in findings}


@pytest.fixture(scope="module")
def real(asset):
    asset("tiny-bert")
    return adapt.load("tiny-bert")


def with_encoder(pretrained, change):
    """The checkpoint with other leaves: ``change(path, leaf)``."""
    params = pretrained.params | {"encoder": tree.map_paths(change, pretrained.params["encoder"])}
    return dataclasses.replace(pretrained, params=params)


def with_vocabulary(pretrained, order):
    """The checkpoint whose words stand for other rows: word i for row ``order[i]``."""

    def reorder(path, leaf):
        return np.asarray(leaf)[order] if path == "embedding/token" else leaf

    return with_encoder(pretrained, reorder)


def test_real_checkpoints_are_well(real, asset):
    assert found(real) == {}
    asset("minilm")
    assert found(adapt.load("minilm")) == {}


@pytest.mark.parametrize("blocks", [("block_00", "block_01"), ("block_01",)])
def test_blocks_that_were_newly_initialised(real, blocks):
    def renew(path, leaf):
        if not path.startswith(blocks) or np.ndim(leaf) != 1:
            return leaf
        return np.full_like(leaf, float(path.endswith("scale")))

    finding = found(with_encoder(real, renew))["newly_initialised"]
    assert finding.evidence == {"fresh": list(blocks), "blocks": 2}
    assert finding.severity == "error"
    case = CheckpointCase(pretrained=with_encoder(real, renew), has_random_weights=True)
    assert not run_checks(CHECKS["checkpoint"], case)


@pytest.mark.parametrize("planted", ["another order", "shifted by a row", "never trained"])
def test_a_tokenizer_of_another_model_of_the_same_size(real, planted):
    rows = real.config.vocabulary
    if planted == "another order":
        wrong = with_vocabulary(real, np.random.default_rng(0).permutation(rows))
    elif planted == "shifted by a row":
        wrong = with_vocabulary(real, np.roll(np.arange(rows), 1))
    else:
        rng = np.random.default_rng(0)

        def renew(path, leaf):
            is_table = path == "embedding/token"
            return rng.normal(0, 0.02, leaf.shape).astype(np.float32) if is_table else leaf

        wrong = with_encoder(real, renew)
    finding = found(wrong)["tokenizer_of_another_model"]
    assert abs(finding.evidence["cosine"] - finding.evidence["cosine_by_chance"]) < 0.05
    assert finding.evidence["pairs"] >= 200


@pytest.mark.parametrize("way", ["no post_processor", "one that adds nothing"])
def test_special_tokens_that_are_not_added(real, way):
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(real.tokenizer.backend.to_str())
    plain = tokenizers.processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    backend.post_processor = None if way == "no post_processor" else plain
    broken = dataclasses.replace(real, tokenizer=Tokenizer(backend, 32))
    assert set(found(broken)) == {"special_tokens_missing"}
    assert not list(special_tokens_missing(CheckpointCase(pretrained=real)))


def cased(real, lowers, mark=""):
    """The checkpoint with words with capitals in its vocabulary, perhaps each after a mark."""
    import tokenizers

    words = [word for word in real.tokenizer.backend.get_vocab() if word.isalpha()][:400]
    words += [word.capitalize() for word in words]
    words += SENTENCE.split() + SENTENCE.lower().split()
    tokens = dict.fromkeys(["[UNK]", *(mark + word for word in words)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if mark:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    if lowers:
        in_lower_case(backend)
    return dataclasses.replace(real, tokenizer=Tokenizer(backend, 32))


def test_capitals_that_an_uncased_vocabulary_does_not_have(real):
    import json

    import tokenizers

    written = json.loads(real.tokenizer.backend.to_str())
    written["normalizer"]["lowercase"] = False
    backend = tokenizers.Tokenizer.from_str(json.dumps(written))
    keeps = dataclasses.replace(real, tokenizer=Tokenizer(backend, 32))
    assert found(keeps)["case_mismatch"].severity == "error"


@pytest.mark.parametrize("mark", ["", "Ġ"])
def test_capitals_that_are_lowered_by_mistake(real, mark):
    keeps = cased(real, lowers=False, mark=mark)
    assert not list(case_mismatch(CheckpointCase(pretrained=keeps)))
    (finding,) = case_mismatch(CheckpointCase(pretrained=cased(real, lowers=True, mark=mark)))
    assert finding.severity == "warning"
