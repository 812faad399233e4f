"""Targets: the table of GPUs, the text form, and what a difference between two machines comes to."""

import struct
from dataclasses import fields, replace
from itertools import product

import pytest

from aot.artifact.cubin import architectures
from aot.errors import BadEnvironment, BadInput
from aot.machine.device import gpus_here, is_here
from aot.machine.sku import ARCHITECTURES, SKUS, Sku, find_sku
from aot.machine.target import Allow, Target, Weight, instruction_set, supported_torch

V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
ASKED_FOR = (
    "t4", "a10", "l4", "l40s", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000", "a100-pcie-40gb", "a100-pcie-80gb", "a100-sxm4-40gb",
    "a100-sxm4-80gb", "h100-pcie", "h100-sxm", "h100-nvl", "h200", "b200",
)  # fmt: skip


@pytest.mark.parametrize("sku", SKUS.values(), ids=list(SKUS))
def test_a_row_of_the_table_is_complete_and_says_where_it_is_from(sku: Sku) -> None:
    properties = sku.properties()
    missing = [name for name, value in properties.items() if value in (None, 0) and name != "minor"]
    assert not missing, f"{sku.alias} lacks {missing}"
    assert sku.source
    assert all(getattr(sku, field.name) is not None for field in fields(sku))
    assert 1 << 20 <= sku.l2_cache <= 1 << 28, "bytes"
    assert 1e6 <= sku.clock <= 4e6, "kHz"
    assert 1e6 <= sku.memory_clock <= 2e7, "kHz"
    assert properties["shared_memory_per_block_optin"] <= properties["shared_memory_per_multiprocessor"] <= 1 << 18
    assert sku.architecture in ARCHITECTURES


def test_the_table_has_every_gpu_that_was_asked_for_once() -> None:
    assert set(ASKED_FOR) <= set(SKUS)
    assert len({sku.name for sku in SKUS.values()}) == len(SKUS)


def test_a_gpu_is_found_by_alias_and_by_its_exact_name_and_a_typo_is_told_the_nearest() -> None:
    assert find_sku("h200") is find_sku("NVIDIA H200")
    with pytest.raises(BadInput, match=r"--gpu 'h300' is unknown\. Did you mean 'h200'"):
        find_sku("h300")


@pytest.mark.parametrize("gpu", ["cpu", *SKUS])
def test_a_targets_text_form_and_its_key_parts_invert(gpu: str) -> None:
    target = Target.named(gpu)
    assert Target.parse(str(target)) == target
    assert Target.of_parts(target.parts()) == target


@pytest.mark.parametrize("text", ["cpu", "cpu/x86-64/torch-2.15.0", "cuda/NVIDIA H200/torch-2.15.0/diffusers-1/linux-x86_64", "a/b/c/d/e"])
def test_text_that_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not device/sku"):
        Target.parse(text)


HARMLESS = ("harmless", None)
H100 = Target("cuda", "NVIDIA H100 80GB HBM3", "2.13.0", "0.42.1", "linux-x86_64", "sm_90", "3.7.1", "13.0")


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ({}, {}),
        ({"sku": "NVIDIA H200"}, {"sku": ("degrading", Allow.SKU)}),
        ({"sku": "NVIDIA L4", "arch": "sm_89"}, {"sku": ("blocking", None), "arch": ("blocking", None)}),
        ({"torch": "2.15.0"}, {"torch": ("degrading", Allow.TORCH)}),
        ({"triton": "3.9.0", "cuda": "13.2"}, {"triton": HARMLESS, "cuda": HARMLESS}),
        ({"cuda": "12.8"}, {"cuda": ("degrading", Allow.TORCH)}),
        ({"diffusers": "0.43.0"}, {"diffusers": HARMLESS}),
        ({"system": "linux-aarch64"}, {"system": ("blocking", None)}),
    ],
)  # fmt: skip
def test_check_says_what_each_field_comes_to(here: dict[str, str], expected: dict[str, tuple[str, Allow | None]]) -> None:
    found = H100.check(replace(H100, **here))
    assert {one.field: (str(one.weight), one.allow) for one in found} == expected
    assert all(one.built in str(one) and one.here in str(one) and one.why for one in found)


def test_an_artifact_for_a_gpu_is_refused_on_a_cpu_by_its_device_alone() -> None:
    (found,) = H100.check(Target.named("cpu"))
    assert (found.field, found.weight) == ("device", Weight.BLOCKING)


def test_an_architecture_that_was_put_in_too_is_another_sku() -> None:
    found = H100.check(Target.named("b200"), also=["sm_100"])
    assert {one.field: one.allow for one in found if one.field in ("arch", "sku")} == {"arch": Allow.SKU, "sku": Allow.SKU}


def test_every_pair_of_gpus_is_blocked_exactly_where_the_architectures_differ() -> None:
    for built, here in product(map(Target.named, SKUS), repeat=2):
        weights = {one.weight for one in built.check(here)}
        assert (Weight.BLOCKING in weights) == (built.arch != here.arch)
        assert (not weights) == (built == here)


@pytest.mark.parametrize(
    ("built", "here", "weight"),
    [
        ("x86-64-v3", "x86-64-v4", Weight.DEGRADING),
        ("x86-64-v4", "x86-64-v4+amx_tile", Weight.DEGRADING),
        ("x86-64-v4", "x86-64-v3", Weight.BLOCKING),
        ("x86-64-v4+amx_tile", "x86-64-v4", Weight.BLOCKING),
        ("x86-64", "x86-64-v3", Weight.DEGRADING),
    ],
)
def test_a_cpu_that_can_more_runs_what_was_built_for_less(built: str, here: str, weight: Weight) -> None:
    cpu = Target.named("cpu")
    found = {one.field: one for one in replace(cpu, sku=built).check(replace(cpu, sku=here))}
    assert found["sku"].weight is weight


def test_a_device_that_differs_from_its_row_is_told_by_property() -> None:
    sku = SKUS["h200"]
    here = {**sku.properties(), "multi_processor_count": 66, "total_memory": sku.memory * 2**30 - 2**28}
    assert sku.differs(here) == [("multi_processor_count", 132, 66)]


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    if gpus_here():
        pytest.skip("this machine has a GPU")
    assert not is_here("h200")
    with pytest.raises(BadEnvironment, match="no cuda device"):
        Target.detect("cuda")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", V4, "x86-64-v4"),
        ("x86_64", V4 | {"avx512_vnni", "amx_tile"}, "x86-64-v4+avx512_vnni+amx_tile"),
        ("x86_64", V4 - {"avx512vl"}, "x86-64-v3"),
        ("x86_64", {"sse4_2"}, "x86-64"),
        ("aarch64", set[str](), "aarch64"),
    ],
)
def test_instruction_sets(machine: str, flags: set[str], expected: str) -> None:
    assert instruction_set(machine, flags) == expected


@pytest.mark.parametrize("version", ["2.11.0", "2.13.1+cu130", "2.15.0", "2.11.0rc1"])
def test_supported_torch(version: str) -> None:
    assert "+" not in supported_torch(version)


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0", "2.16.0", "3.0"])
def test_a_torch_outside_the_range_is_refused_with_the_range(version: str) -> None:
    with pytest.raises(BadEnvironment, match=r"2\.11 to 2\.15"):
        supported_torch(version)


def _cubin(sm: int, *, abi: int = 8) -> bytes:
    """The header of a cubin: all that `architectures` reads."""
    flags = sm << 8 | 0x9000004 if abi >= 8 else sm
    return (
        b"\x7fELF\x02\x01\x01\x41" + bytes([abi]) + bytes(7) + struct.pack("<HH", 2, 190) + bytes(28) + struct.pack("<I", flags) + bytes(12)
    )


def _fatbin(*entries: tuple[int, int, bytes]) -> bytes:
    """A fatbin of entries of kind, architecture and code."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + bytes(12) + struct.pack("<I", sm) + bytes(32) + code
        for kind, sm, code in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_the_architecture_of_machine_code_is_read_from_its_own_header() -> None:
    host = b"\x7fELF\x02\x01\x01" + bytes(11) + struct.pack("<H", 62) + bytes(44)
    assert architectures(host + _cubin(90) + b"rest" + _cubin(90) + _cubin(80, abi=7)) == {"sm_80": 1, "sm_90": 2}
    assert architectures(host) == {}


def test_of_a_fatbin_each_piece_of_machine_code_counts_and_its_portable_code_does_not() -> None:
    code = b"text" + _fatbin((2, 80, _cubin(80)), (2, 90, b"compressed"), (1, 80, b".ptx")) + _cubin(120)
    assert architectures(code) == {"sm_120": 1, "sm_80": 1, "sm_90": 1}
