"""One step on one device and on eight: the same losses, each device with its share of the state.

The devices are virtual; the collectives between them are real.
"""

import json

import filelock
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from adapt.errors import MeshError, RuleError
from adapt.parallel import sharding
from tests.helpers import small
from tests.helpers.meshes import case_key, relative_error, run_cases

MESHES = ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")
PLAIN = [
    {"family": family, "strategy": strategy}
    for family in ("bert", "vit")
    for strategy in ("full", "frozen")
]
MORE = [
    {"family": "bert", "strategy": "full", "mesh": "fsdp=8", "accumulate": 2},
    {
        "family": "bert",
        "strategy": "full",
        "mesh": "fsdp=4,tensor=2",
        "scan": True,
        "remat": "block",
    },
    {"family": "bert", "strategy": "full", "mesh": None, "scan": True, "remat": "dots"},
    {"family": "bert", "strategy": "top:1", "mesh": "data=4,fsdp=2"},
]


@pytest.fixture(scope="module")
def found(tmp_path_factory, worker_id):
    """What these tests look at, computed once for all workers of a session."""
    cases = [case | {"mesh": mesh} for case in PLAIN for mesh in (None, *MESHES)]
    cases += [{"family": "bert", "strategy": "top:1", "mesh": None}, *MORE]
    if worker_id == "master":
        return run_cases(cases)
    path = tmp_path_factory.getbasetemp().parent / "sharded.json"
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(json.dumps(run_cases(cases)))
    return json.loads(path.read_text())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: f"{case['family']}-{case['strategy']}")
def test_eight_devices_train_as_one_does(found, case, mesh):
    one, many = found[case_key(case)], found[case_key(case | {"mesh": mesh})]
    assert len(one["losses"]) == 50 and one["losses"][-1] < one["losses"][0]
    assert relative_error(many["losses"], one["losses"]) < 1e-5
    assert relative_error(many["norms"], one["norms"]) < 1e-5
    assert relative_error(many["outputs"], one["outputs"], 1.0) < 1e-4


@pytest.mark.parametrize("case", MORE, ids=case_key)
def test_parts_loops_and_what_is_computed_again_change_nothing(found, case):
    one = found[case_key({"family": "bert", "strategy": case["strategy"]})]
    assert relative_error(found[case_key(case)]["losses"], one["losses"]) < 1e-5


def test_a_device_holds_its_share_of_the_moments(found):
    case = {"family": "bert", "strategy": "full"}
    assert found[case_key(case | {"mesh": "data=8"})]["share"] == 1
    assert (
        found[case_key(case | {"mesh": "fsdp=8"})]["share"] < 0.17
    )  # biases and norms, whole everywhere, are the rest
    assert found[case_key(case | {"mesh": "data=2,fsdp=2,tensor=2"})]["share"] < 0.31


def test_a_step_on_a_mesh_compiles_once(found):
    assert all(each["compiled"] == 1 for each in found.values())


@pytest.mark.parametrize(
    ("spec", "devices", "says"),
    [
        ("data=2,fsdp=3", 8, "takes 6 devices and there are 8: it must take all of them"),
        ("fsdp=4", 8, "takes 4 devices and there are 8"),
        ("fsdp=4", 1, "takes 4 devices and there is 1"),
        ("model=8", 8, "no axis 'model'"),
        ("data=two", 8, "no size of an axis"),
        ("data=0", 8, "no size of an axis"),
        ("data=2,data=4", 8, "each once"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(spec, devices, says):
    with pytest.raises(MeshError, match=says) as fault:
        sharding.axis_sizes(spec, devices)
    assert "\n" not in str(fault.value)


def test_a_mesh_of_some_devices_has_to_divide_them():
    with pytest.raises(MeshError, match="3 devices and there are 8: it must divide them"):
        sharding.axis_sizes("data=3", 8, some=True)


def test_no_mesh_is_all_devices_on_data():
    assert sharding.axis_sizes("", 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert sharding.make_layout("", jax.devices()[:1]) is None
    assert sharding.axis_sizes("fsdp=2", 8, some=True)["fsdp"] == 2


def abstract(spec, rules=sharding.RULES):
    sizes = sharding.axis_sizes(spec, 8)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), sharding.AXES)
    return sharding.Layout(mesh, tuple(rules), tuple(rules))


def test_rules_place_parameters_and_what_does_not_divide_is_refused():
    layout, shapes = abstract("fsdp=4,tensor=2"), small.classifier("bert").shapes()
    layout.check(shapes)
    assert layout.spec("encoder/block_00/mlp/up/kernel", (16, 32)) == PartitionSpec(
        "fsdp", "tensor"
    )
    assert layout.spec("encoder/block_00/mlp/down/kernel", (32, 16)) == PartitionSpec(
        "tensor", "fsdp"
    )
    assert layout.spec("encoder/embedding/token", (40, 16)) == PartitionSpec(None, "fsdp")
    assert layout.spec("head/classifier/kernel", (16, 3)) == PartitionSpec()
    with pytest.raises(
        MeshError,
        match="dimension 1 of encoder/embedding/token is 18, which fsdp=4 does not divide",
    ):
        layout.spec("encoder/embedding/token", (40, 18))
    with pytest.raises(MeshError, match="no axis 'model'"):
        abstract("fsdp=8", [(".*", "model")]).check(shapes)
    with pytest.raises(RuleError, match="wins no parameter"):
        abstract("fsdp=8", [("decoder/.*", "fsdp"), (".*", "-")]).check(shapes)


def test_a_batch_that_the_groups_do_not_divide_is_refused():
    sharding.check_batch(abstract("data=2,fsdp=4"), 32, 4)
    with pytest.raises(
        MeshError,
        match=r"--batch-size 36 can't be divided over data=2 x fsdp=4: give a multiple of 8",
    ):
        sharding.check_batch(abstract("data=2,fsdp=4"), 36)


def test_what_goes_to_a_device_is_no_view_of_a_file(tmp_path):
    """A file that is written into while a run reads it must not change the run."""
    np.arange(4096, dtype=np.float32).tofile(tmp_path / "values")
    held = sharding.shard_tree(
        {"encoder": np.asarray(np.memmap(tmp_path / "values", np.float32, "r"))}
    )["encoder"]
    with (tmp_path / "values").open("r+b") as file:
        file.write(b"\xff" * 4096 * 4)
    np.testing.assert_array_equal(held, np.arange(4096))
