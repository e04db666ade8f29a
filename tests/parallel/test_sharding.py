"""One step on one device and on eight: the same losses, each device with its share of the state.

The devices are virtual; the collectives between them are real.
"""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from adapt.errors import MeshError, RuleError
from adapt.parallel import multihost, sharding
from tests.helpers import small
from tests.helpers.meshes import PLAIN, case_key, relative_error, run_once

MESHES = ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")
MIXED = MESHES[-1]  # a mesh of all axes
FULL = [case for case in PLAIN if case["strategy"] == "full"]
FROZEN = [case for case in PLAIN if case["strategy"] == "frozen"]
ON_MESHES = [case | {"mesh": mesh} for case in FULL for mesh in MESHES]
ON_MESHES += [case | {"mesh": MIXED} for case in FROZEN]
BERT = {"family": "bert", "strategy": "full"}
TWO_BLOCKS = BERT | {"layers": 2}  # for a loop of them, and for a frozen one
DECODER = {"family": "grouped", "strategy": "full"}  # two heads share keys and values
VARIANTS = [
    BERT | {"mesh": "fsdp=8", "accumulate": 2},
    TWO_BLOCKS | {"mesh": "fsdp=4,tensor=2", "scan": True, "remat": "block"},
    TWO_BLOCKS | {"mesh": None, "scan": True, "remat": "dots"},
    TWO_BLOCKS | {"mesh": "data=4,fsdp=2", "strategy": "top:1"},
    BERT | {"mesh": "data=2,fsdp=2,tensor=2", "context": True},
    BERT | {"mesh": "fsdp=8", "strategy": "frozen", "context": True},
    DECODER | {"mesh": MIXED},
]
# Biases and norms train above and below int8 kernels.
INT8 = TWO_BLOCKS | {"strategy": "bitfit", "frozen_dtype": "int8"}
INT8_ON_MESH = INT8 | {"mesh": MIXED, "scan": True, "remat": "block"}


@pytest.fixture(scope="module")
def reports(shared_folder, on_one_device, forks, keeps_compiled):
    """What tests/helpers/sharded.py reports of every case, run once for all workers of a session."""
    cases = [*ON_MESHES, TWO_BLOCKS, TWO_BLOCKS | {"strategy": "top:1"}, DECODER, *VARIANTS]
    cases += [INT8, INT8_ON_MESH]
    path = shared_folder / "sharded.json"
    return on_one_device | run_once(forks, path, cases, **keeps_compiled)


@pytest.mark.parametrize("case", ON_MESHES, ids=case_key)
def test_eight_devices_train_as_one_does(reports, case):
    one = reports[case_key(case | {"mesh": None})]
    eight = reports[case_key(case)]
    assert len(one["losses"]) == len(eight["losses"]) == 6
    assert np.mean(one["losses"][-3:]) < np.mean(one["losses"][:3])  # an epoch of 3 steps each
    assert relative_error(eight["losses"], one["losses"]) < 1e-5
    assert relative_error(eight["norms"], one["norms"]) < 1e-5
    assert relative_error(eight["outputs"], one["outputs"], 1.0) < 1e-4


@pytest.mark.parametrize("case", VARIANTS, ids=case_key)
def test_micro_batches_loops_rematerialisation_and_a_context_change_nothing(reports, case):
    same_blocks = {name: case[name] for name in ("family", "strategy", "layers") if name in case}
    plain = reports[case_key(same_blocks)]
    assert relative_error(reports[case_key(case)]["losses"], plain["losses"]) < 1e-5


def test_a_device_holds_its_share_of_the_moments(reports):
    def share(mesh):
        return reports[case_key(BERT | {"mesh": mesh})]["share"]

    # Biases and norms, which every device holds, are the rest.
    assert share("data=8") == 1
    assert share("fsdp=8") < 0.17
    assert share("data=2,fsdp=2,tensor=2") < 0.34


def test_int8_kernels_are_divided_with_their_scales_and_change_nothing(reports):
    one = reports[case_key(INT8)]
    eight = reports[case_key(INT8_ON_MESH)]
    assert (one["int8"], eight["int8"]) == (1, 0.25)
    assert relative_error(eight["losses"], one["losses"]) < 1e-5
    assert relative_error(eight["norms"], one["norms"]) < 1e-5


def test_a_step_on_a_mesh_compiles_once(reports):
    assert all(report["compiled"] == 1 for report in reports.values())


# Meshes


@pytest.mark.parametrize(
    ("spec", "devices", "message"),
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
def test_a_mesh_that_does_not_fit_the_devices_is_refused(spec, devices, message):
    with pytest.raises(MeshError, match=message) as raised:
        sharding.axis_sizes(spec, devices)
    assert "\n" not in str(raised.value)


def test_a_mesh_of_some_devices_has_to_divide_them():
    assert sharding.axis_sizes("fsdp=2", 8, may_take_some=True)["fsdp"] == 2
    with pytest.raises(MeshError, match="3 devices and there are 8: it must divide them"):
        sharding.axis_sizes("data=3", 8, may_take_some=True)


def test_without_a_mesh_all_devices_are_on_data():
    assert sharding.axis_sizes("", 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert sharding.make_layout("", jax.devices()[:1]) is None


# Rules


def layout_of(spec, rules=sharding.RULES):
    """A layout over eight devices that need not exist."""
    sizes = sharding.axis_sizes(spec, 8)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), sharding.AXES)
    return sharding.Layout(mesh, tuple(rules), tuple(rules))


def test_the_rules_divide_every_parameter_of_an_encoder():
    layout = layout_of("fsdp=4,tensor=2")
    for family in ("bert", "rotary"):
        layout.check(small.classifier(family).shapes())
    expected = {
        ("encoder/block_00/mlp/up/kernel", (16, 32)): PartitionSpec("fsdp", "tensor"),
        ("encoder/block_00/mlp/up/bias", (32,)): PartitionSpec("tensor"),
        ("encoder/block_00/mlp/gate/kernel", (16, 32)): PartitionSpec("fsdp", "tensor"),
        ("encoder/block_00/mlp/down/kernel", (32, 16)): PartitionSpec("tensor", "fsdp"),
        ("encoder/embedding/token", (40, 16)): PartitionSpec(None, "fsdp"),
        ("head/classifier/kernel", (16, 3)): PartitionSpec(),
    }
    for (path, shape), spec in expected.items():
        assert layout.spec(path, shape) == spec


def test_a_dimension_that_its_axis_does_not_divide_is_refused():
    message = "dimension 1 of encoder/embedding/token is 18, which fsdp=4 does not divide"
    with pytest.raises(MeshError, match=message):
        layout_of("fsdp=4,tensor=2").spec("encoder/embedding/token", (40, 18))


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([(".*", ("model",))], MeshError, "no axis 'model'"),
        ([("decoder/.*", ("fsdp",)), (".*", ())], RuleError, "wins no parameter"),
        ([("encoder/.*", ())], RuleError, "no rule matches 'head/classifier/bias'"),
        ([(".*/bias", (None, "fsdp")), (".*", ())], MeshError, "names 2 dimensions, .*/bias has 1"),
    ],
)
def test_rules_that_do_not_fit_the_parameters_are_refused(rules, error, message):
    with pytest.raises(error, match=message):
        layout_of("fsdp=8", rules).check(small.classifier("bert").shapes())


def test_a_batch_that_the_groups_do_not_divide_is_refused():
    layout = layout_of("data=2,fsdp=4")
    sharding.check_batch(layout, 32, 4)
    with pytest.raises(MeshError, match="36 can't be divided over data=2 x fsdp=4"):
        sharding.check_batch(layout, 36)


# Hosts


def test_what_goes_to_a_device_is_no_view_of_a_file(tmp_path):
    """A file that is written into while a run reads it must not change the run."""
    path = tmp_path / "values"
    values = np.arange(4096, dtype=np.float32)
    values.tofile(path)
    on_device = sharding.shard_tree({"encoder": np.asarray(np.memmap(path, np.float32, "r"))})
    with path.open("r+b") as file:
        file.write(b"\xff" * values.nbytes)
    np.testing.assert_array_equal(on_device["encoder"], values)


@pytest.mark.parametrize("value", [np.int64(2**40), 1e-300, np.ones((2, 3), np.uint8), True])
def test_one_process_gathers_its_own_value_exactly(value):
    gathered = multihost.all_gather(value)
    np.testing.assert_array_equal(gathered, np.asarray(value)[None])
    assert gathered.dtype == np.asarray(value).dtype


@pytest.mark.parametrize(("rows", "processes"), [(0, 3), (2, 3), (10, 4), (12, 4)])
def test_shares_of_rows_are_even_and_leave_none_out(monkeypatch, rows, processes):
    monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = multihost.even_shares(rows)
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
