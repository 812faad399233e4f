"""Sku: the GPUs that can be built for, and the device properties by which Inductor and Triton choose kernels for each.

Imports no torch. Where the numbers are from: what an architecture shares, the CUDA C++ Programming Guide's table "Technical
Specifications per Compute Capability"; multiprocessors, level 2 cache, memory and bus, NVIDIA's datasheet or architecture
whitepaper of the product (each row's `source`); clocks, the product's boost and memory clocks there. Kernels are chosen by
the first group and by the multiprocessors; clocks and cache enter estimates only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aot.choice import choice

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What all GPUs of one compute capability share. Shared memory in bytes."""

    major: int
    minor: int
    max_threads_per_multiprocessor: int
    shared_memory_per_multiprocessor: int
    shared_memory_per_block_optin: int  # at most, for a kernel that asks for it

    def __str__(self) -> str:
        return f"sm_{self.major}{self.minor}"


@dataclass(frozen=True, slots=True)
class Sku:
    """One product. `name` is what `torch.cuda.get_device_name()` answers there, `alias` what a user types.

    `memory` in GiB as it is sold (a driver keeps some of it), `l2_cache` in bytes, clocks in kHz, `memory_bus` in bits.
    """

    alias: str
    name: str
    architecture: Architecture
    multiprocessors: int
    memory: int
    l2_cache: int
    clock: int
    memory_clock: int
    memory_bus: int
    source: str

    def properties(self) -> dict[str, Any]:
        """What `torch.cuda.get_device_properties` answers there, under torch's names; of the same units."""
        arch = self.architecture
        return {
            "name": self.name,
            "major": arch.major,
            "minor": arch.minor,
            "total_memory": self.memory * 2**30,
            "multi_processor_count": self.multiprocessors,
            "warp_size": 32,
            "max_threads_per_multi_processor": arch.max_threads_per_multiprocessor,
            "max_threads_per_block": 1024,
            "regs_per_multiprocessor": 65536,
            "shared_memory_per_block": 49152,
            "shared_memory_per_block_optin": arch.shared_memory_per_block_optin,
            "shared_memory_per_multiprocessor": arch.shared_memory_per_multiprocessor,
            "L2_cache_size": self.l2_cache,
            "clock_rate": self.clock,
            "memory_clock_rate": self.memory_clock,
            "memory_bus_width": self.memory_bus,
            "gcnArchName": self.name,  # which is what torch's CUDA build answers
        }

    def differs(self, here: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """What a device's properties say otherwise than this row: the property, the row's, the device's.

        Memory is compared within a tenth: what a driver keeps for itself differs.
        """
        found = [(name, mine, here[name]) for name, mine in self.properties().items() if name in here and here[name] != mine]
        return [(name, mine, theirs) for name, mine, theirs in found if name != "total_memory" or abs(mine - theirs) > mine / 10]


_KIB, _MIB = 2**10, 2**20
SM_75 = Architecture(7, 5, 1024, 64 * _KIB, 64 * _KIB)
SM_80 = Architecture(8, 0, 2048, 164 * _KIB, 163 * _KIB)
SM_86 = Architecture(8, 6, 1536, 100 * _KIB, 99 * _KIB)
SM_89 = Architecture(8, 9, 1536, 100 * _KIB, 99 * _KIB)
SM_90 = Architecture(9, 0, 2048, 228 * _KIB, 227 * _KIB)
SM_100 = Architecture(10, 0, 2048, 228 * _KIB, 227 * _KIB)
SM_120 = Architecture(12, 0, 1536, 100 * _KIB, 99 * _KIB)
ARCHITECTURES = (SM_75, SM_80, SM_86, SM_89, SM_90, SM_100, SM_120)

_TURING, _AMPERE_CONSUMER, _ADA = "Turing whitepaper", "Ampere GA102 whitepaper", "Ada whitepaper"
_AMPERE, _HOPPER, _BLACKWELL_RTX = "A100 whitepaper", "H100 whitepaper", "RTX Blackwell whitepaper"
# fmt: off
_ROWS = (
    #   alias                 name                                                  arch   SMs  GiB  L2             clock      memory      bus
    Sku("t4",                 "Tesla T4",                                           SM_75,  40,  16,   4 * _MIB, 1_590_000,  5_001_000,  256, f"T4 datasheet; {_TURING}"),
    Sku("a10",                "NVIDIA A10",                                         SM_86,  72,  24,   6 * _MIB, 1_695_000,  6_251_000,  384, f"A10 datasheet; {_AMPERE_CONSUMER}"),
    Sku("l4",                 "NVIDIA L4",                                          SM_89,  58,  24,  48 * _MIB, 2_040_000,  6_251_000,  192, f"L4 datasheet; {_ADA}"),
    Sku("l40s",               "NVIDIA L40S",                                        SM_89, 142,  48,  96 * _MIB, 2_520_000,  9_001_000,  384, f"L40S datasheet; {_ADA}"),
    Sku("rtx-3090",           "NVIDIA GeForce RTX 3090",                            SM_86,  82,  24,   6 * _MIB, 1_695_000,  9_751_000,  384, _AMPERE_CONSUMER),
    Sku("rtx-4090",           "NVIDIA GeForce RTX 4090",                            SM_89, 128,  24,  72 * _MIB, 2_520_000, 10_501_000,  384, _ADA),
    Sku("rtx-5090",           "NVIDIA GeForce RTX 5090",                            SM_120, 170, 32,  96 * _MIB, 2_407_000, 14_001_000,  512, _BLACKWELL_RTX),
    Sku("rtx-pro-6000",       "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",  SM_120, 188, 96, 128 * _MIB, 2_617_000, 14_001_000,  512, "RTX PRO Blackwell whitepaper"),
    Sku("rtx-pro-6000-server", "NVIDIA RTX PRO 6000 Blackwell Server Edition",      SM_120, 188, 96, 128 * _MIB, 2_430_000, 12_481_000,  512, "RTX PRO Blackwell whitepaper; Server Edition datasheet"),
    Sku("a100-pcie-40gb",     "NVIDIA A100-PCIE-40GB",                              SM_80, 108,  40,  40 * _MIB, 1_410_000,  1_215_000, 5120, _AMPERE),
    Sku("a100-pcie-80gb",     "NVIDIA A100 80GB PCIe",                              SM_80, 108,  80,  40 * _MIB, 1_410_000,  1_512_000, 5120, f"{_AMPERE}; A100 80GB PCIe datasheet"),
    Sku("a100-sxm4-40gb",     "NVIDIA A100-SXM4-40GB",                              SM_80, 108,  40,  40 * _MIB, 1_410_000,  1_215_000, 5120, _AMPERE),
    Sku("a100-sxm4-80gb",     "NVIDIA A100-SXM4-80GB",                              SM_80, 108,  80,  40 * _MIB, 1_410_000,  1_593_000, 5120, f"{_AMPERE}; A100 80GB datasheet"),
    Sku("h100-pcie",          "NVIDIA H100 PCIe",                                   SM_90, 114,  80,  50 * _MIB, 1_755_000,  1_593_000, 5120, _HOPPER),
    Sku("h100-sxm",           "NVIDIA H100 80GB HBM3",                              SM_90, 132,  80,  50 * _MIB, 1_980_000,  2_619_000, 5120, _HOPPER),
    Sku("h100-nvl",           "NVIDIA H100 NVL",                                    SM_90, 132,  94,  60 * _MIB, 1_785_000,  2_619_000, 6144, f"{_HOPPER}; H100 NVL product brief"),
    Sku("h200",               "NVIDIA H200",                                        SM_90, 132, 140,  60 * _MIB, 1_980_000,  3_201_000, 6016, f"H200 datasheet; {_HOPPER}; the bus, one such device"),
    Sku("b200",               "NVIDIA B200",                                        SM_100, 148, 180, 126 * _MIB, 1_965_000, 3_996_000, 8192, "Blackwell tuning guide; HGX B200 datasheet"),
)
# fmt: on
SKUS = {row.alias: row for row in _ROWS}


def find_sku(text: str) -> Sku:
    """The row of an alias, or of a device's exact name. Raises BadInput naming the nearest alias."""
    named = {row.name: row for row in _ROWS}
    return named[text] if text in named else SKUS[choice(text, known=(*SKUS, CPU), field="--gpu")]
