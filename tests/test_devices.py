"""What is decided for a device, by descriptions of devices that this machine does not have."""

from types import SimpleNamespace

import pytest

from adapt import devices
from adapt.devices import Device, compute_dtype
from adapt.errors import StrategyError

H100 = Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0), 60 << 30)
V100 = Device("gpu", "Tesla V100-SXM2-16GB", (7, 0), 12 << 30)
V5E = Device("tpu", "TPU v5 lite", None, 16 << 30)
MI250 = Device("gpu", "AMD Instinct MI250X", None, 60 << 30)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (devices.CPU, "float32"),
        (V100, "float32"),
        (MI250, "float32"),
        (H100, "bfloat16"),
        (V5E, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_device_has_it(device, dtype):
    assert compute_dtype("auto", device) == dtype
    assert compute_dtype("float32", device) == "float32"
    assert compute_dtype("bfloat16", device) == "bfloat16"


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(StrategyError, match="`dtype`"):
        compute_dtype("float16")


def test_this_machine_is_a_cpu():
    assert not devices.this_device().is_accelerator
    assert compute_dtype("auto") == "float32"


@pytest.mark.parametrize(
    ("capability", "read"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx90a", None), (None, None)]
)
def test_a_gpu_is_described_by_what_jax_says_of_it(capability, read):
    gpu = SimpleNamespace(
        platform="gpu",
        device_kind="a GPU",
        compute_capability=capability,
        memory_stats=lambda: {"bytes_limit": 1 << 30},
    )
    assert devices.describe(gpu) == Device("gpu", "a GPU", read, 1 << 30)
