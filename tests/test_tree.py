"""Paths, labels and surgery on random trees: every function is pure and strict."""

import doctest
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adapt import tree as tree_module
from adapt.errors import RuleError, TreeError
from adapt.training.optim import FROZEN
from adapt.tree import (
    check_like,
    count,
    digest,
    discarded,
    drop,
    empties,
    get,
    graft,
    label,
    map_paths,
    merge,
    nbytes,
    paths,
    select,
    summary,
    unflatten,
)

NAMES = st.sampled_from(["a", "b", "encoder", "head", "block_00", "bias", "a-b"])
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (0,), (2, 0)])


@st.composite
def arrays(draw):
    shape = draw(SHAPES)
    values = draw(st.lists(st.integers(-9, 9), min_size=4, max_size=4))
    size = np.prod(shape, dtype=int)
    return np.array(values, np.float32)[:size].reshape(shape)


def trees(least: int = 0):
    """Nested dicts with arrays, scalars and empty subtrees."""
    nested = st.recursive(
        arrays() | st.just({}),
        lambda node: st.dictionaries(NAMES, node, min_size=1, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(NAMES, nested, min_size=least, max_size=3)


def identities(tree):
    """A tree with the identity of every leaf: equal before and after, nothing was written or copied."""
    return {
        name: identities(node) if isinstance(node, dict) else id(node)
        for name, node in tree.items()
    }


@given(trees())
def test_unflatten_inverts_paths_with_the_empty_subtrees(tree):
    flat = paths(tree) | dict.fromkeys(empties(tree))
    assert identities(unflatten(flat)) == identities(tree)


@given(trees(), st.data())
def test_select_splits_a_tree_in_two_that_merge_to_it_in_any_order(tree, data):
    names = [*paths(tree), *empties(tree)]
    chosen = data.draw(st.sets(st.sampled_from(names))) if names else set()
    one = select(tree, lambda path: path in chosen)
    other = select(tree, lambda path: path not in chosen)
    assert {*paths(one), *empties(one)} == chosen
    assert identities(merge(one, other)) == identities(tree)
    assert identities(merge(other, one)) == identities(tree)


@given(trees(), st.data())
def test_merge_refuses_an_overlap_and_says_where(tree, data):
    assume(paths(tree))
    path = data.draw(st.sampled_from(sorted(paths(tree))))
    before = identities(tree)
    with pytest.raises(TreeError, match=re.escape(f"'{path}' is in both")):
        merge(tree, unflatten({path: np.float32(0)}))
    assert identities(tree) == before


def subtrees(tree) -> set[str]:
    """The paths of all leaves and subtrees."""
    found = set()
    for path in [*paths(tree), *empties(tree)]:
        names = path.rstrip("/").split("/")
        found |= {"/".join(names[:depth]) for depth in range(1, len(names) + 1)}
    return found


@given(trees(1), st.data())
def test_drop_is_pure_and_graft_inverts_it(tree, data):
    path = data.draw(st.sampled_from(sorted(subtrees(tree))))
    before = identities(tree)
    subtree = get(tree, path)
    dropped = drop(tree, path)
    assert identities(tree) == before
    assert path not in subtrees(dropped)
    with pytest.raises(TreeError):
        get(dropped, path)
    assert identities(graft(dropped, path, subtree)) == before
    with pytest.raises(TreeError, match="is taken"):
        graft(tree, path, subtree)


@given(trees(1), st.data())
def test_the_record_of_what_is_discarded_accounts_for_every_parameter(tree, data):
    path = data.draw(st.sampled_from(sorted(tree)))
    record, dropped = discarded(tree, path), drop(tree, path)
    assert record["parameters"] == count(tree) - count(dropped)
    assert record["shapes"] == {
        p: list(leaf.shape) for p, leaf in paths(tree).items() if p not in paths(dropped)
    }


def test_discarding_one_leaf_is_recorded_under_its_own_path():
    tree = {"encoder": {"bias": np.ones(3, np.float32)}}
    assert discarded(tree, "encoder/bias")["shapes"] == {"encoder/bias": [3]}
    assert discarded(tree, "encoder/")["shapes"] == {"encoder/bias": [3]}
    assert discarded({"head": {}}, "head") | {"digest": ""} == {
        "path": "head",
        "parameters": 0,
        "shapes": {},
        "digest": "",
    }


def test_what_is_not_there_is_answered_with_what_is():
    tree = {"encoder": {"a": np.ones(1)}, "head": {}}
    for path, there in [
        ("tail", "at the top there is encoder, head"),
        ("encoder/b", "under 'encoder' there is a"),
    ]:
        for function in (get, drop, discarded):
            with pytest.raises(
                TreeError, match=re.escape(f"no '{path}' in the parameters: {there}")
            ):
                function(tree, path)
    with pytest.raises(TreeError, match="under 'head' there is nothing"):
        drop(tree, "head/classifier")
    with pytest.raises(
        TreeError, match=re.escape("cannot graft at 'encoder/a/b': 'encoder/a' is a parameter")
    ):
        graft(tree, "encoder/a/b", {})


@given(trees())
def test_count_and_bytes_are_sums_over_leaves(tree):
    leaves = paths(tree).values()
    assert count(tree) == sum(leaf.size for leaf in leaves)
    assert nbytes(tree) == sum(leaf.nbytes for leaf in leaves)


# Rules and labels


RULES = st.lists(
    st.tuples(
        st.sampled_from([".*", "a/.*", "a", "head/.*", ".*bias", "encoder/.*", "b.*", "x"]),
        st.sampled_from("uvw"),
    ),
    max_size=4,
)


@given(trees(), RULES)
def test_the_first_rule_that_matches_wins_and_every_rule_and_every_leaf_is_used(tree, rules):
    names = [*paths(tree), *empties(tree)]
    winners = {
        name: next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, name)), None)
        for name in names
    }
    if None in winners.values() or set(winners.values()) != set(range(len(rules))):
        with pytest.raises(RuleError):
            label(tree, rules)
    else:
        labels = label(tree, rules)
        assert paths(labels) == {name: rules[winners[name]][1] for name in paths(tree)}
        assert empties(labels) == empties(tree)


def test_a_leaf_without_rule_is_named():
    with pytest.raises(
        RuleError,
        match=r"no rule matches 'head/bias': add one, or end the list with one for '\.\*'",
    ):
        label({"encoder": {"a": 1}, "head": {"bias": 1}}, [("encoder/.*", FROZEN)])


def test_a_rule_that_wins_nothing_names_the_nearest_paths_or_the_earlier_rule():
    tree = {"encoder": {"block_00": {"bias": 1}, "block_01": {"bias": 1}}}
    with pytest.raises(
        RuleError,
        match=r"'enc/block_01/bias'.* wins no parameter: the nearest paths are encoder/block_01/bias",
    ):
        label(tree, [("enc/block_01/bias", "top"), (".*", FROZEN)])
    with pytest.raises(RuleError, match="an earlier rule wins all that it matches"):
        label(tree, [(".*", FROZEN), ("encoder/block_01/.*", "top")])
    with pytest.raises(RuleError, match="is not a regular expression"):
        label(tree, [("encoder/(", "top")])


def test_a_rule_may_match_an_empty_head_and_no_other_nothing():
    tree = {"encoder": {"a": np.ones(2)}, "head": {}}
    labels = label(tree, [("head/.*", "head"), ("encoder/.*", FROZEN)])
    assert labels == {"encoder": {"a": FROZEN}, "head": {}}
    assert summary(tree, labels) == {FROZEN: 2}
    with pytest.raises(RuleError, match="wins no parameter"):
        label(drop(tree, "head"), [("head/.*", "head"), ("encoder/.*", FROZEN)])


@given(trees(), st.data())
def test_summary_counts_every_parameter_once(tree, data):
    labels = map_paths(lambda path, leaf: data.draw(st.sampled_from("uv")), tree)
    counts = summary(tree, labels)
    assert sum(counts.values()) == count(tree)
    flat = paths(labels)
    assert counts == {
        g: sum(leaf.size for p, leaf in paths(tree).items() if flat[p] == g)
        for g in dict.fromkeys(flat.values())
    }


def test_a_leaf_that_was_grafted_after_labelling_has_no_label():
    tree = {"encoder": {"a": np.ones(2)}}
    labels = label(tree, [(".*", FROZEN)])
    with pytest.raises(
        RuleError, match="'head/k' has no label: make the labels from the very tree that trains"
    ):
        summary(graft(tree, "head", {"k": np.ones(1)}), labels)


# Strict comparison


@given(trees())
def test_a_tree_is_like_itself(tree):
    check_like(tree, tree, dtypes=True)


def test_the_diff_has_a_line_for_every_difference_and_no_other():
    like = {
        "a": np.ones((2, 3), np.float32),
        "b": np.ones(1, np.float32),
        "same": np.ones(4),
        "d": {"e": np.ones(5, np.float32)},
    }
    tree = {
        "a": np.ones((3, 2), np.float32),
        "c": np.ones(7),
        "same": np.ones(4),
        "d": {"e": np.ones(5, np.float16)},
    }
    with pytest.raises(TreeError) as caught:
        check_like(tree, like, "the weights", dtypes=True)
    first, *lines = str(caught.value).splitlines()
    assert first == "the weights do not fit (- missing, + not expected, ! misshapen):"
    assert sorted(lines) == [
        "  ! a (3, 2), expected (2, 3)",
        "  ! d/e float16, expected float32",
        "  + c (7,)",
        "  - b (1,)",
    ]
    with pytest.raises(TreeError) as caught:
        check_like(tree, like, "the weights")
    assert len(str(caught.value).splitlines()) == 4  # the dtype was not asked for


def test_a_long_diff_is_cut_and_says_so():
    with pytest.raises(TreeError, match=r"\.\.\. and 8 more$"):
        check_like({}, {f"p{i}": np.ones(1) for i in range(20)})


# The digest


@given(trees(), st.data())
def test_the_digest_sees_one_flipped_bit(tree, data):
    filled = {path: leaf for path, leaf in paths(tree).items() if leaf.nbytes}
    assume(filled)
    path = data.draw(st.sampled_from(sorted(filled)))
    raw = bytearray(filled[path].tobytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    changed = np.frombuffer(bytes(raw), np.float32).reshape(filled[path].shape)
    assert digest(unflatten(paths(tree) | {path: changed})) != digest(tree)


@given(trees(), st.data())
def test_the_digest_sees_dtype_shape_and_name(tree, data):
    assume(paths(tree))
    path = data.draw(st.sampled_from(sorted(paths(tree))))
    flat = paths(tree)
    leaf = flat[path]
    others = [flat | {path: leaf.view(np.int32)}, flat | {path: leaf.reshape((1, *leaf.shape))}]
    others.append({p: v for p, v in flat.items() if p != path} | {f"{path}2": leaf})
    assert digest(tree) not in {digest(unflatten(other)) for other in others}
    assert len({digest(unflatten(other)) for other in others}) == 3


@given(trees())
def test_the_digest_depends_on_neither_order_nor_library_nor_memory_layout(tree):
    backwards = lambda node: (
        {k: backwards(node[k]) for k in reversed(list(node))} if isinstance(node, dict) else node
    )
    same = [backwards(tree), map_paths(lambda _, leaf: jnp.asarray(leaf), tree)]
    same.append(map_paths(lambda _, leaf: np.asfortranarray(leaf).reshape(leaf.shape), tree))
    assert {digest(other) for other in same} == {digest(tree)}


def test_the_digest_of_a_scalar_is_not_that_of_a_vector_of_one():
    assert digest({"a": np.float32(1)}) != digest({"a": np.ones(1, np.float32)})
    assert digest({"a": np.ones(2, ml_dtypes.bfloat16)}) != digest({"a": np.ones(2, np.float16)})


# The docstrings


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(tree_module)
    assert result.attempted > 10 and not result.failed
