"""Target: where an artifact must run."""

import platform
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from packaging.version import Version

from aot.choice import choice
from aot.errors import BadEnvironment, BadInput

TORCH_MIN, TORCH_BELOW = Version("2.11"), Version("2.16")

# What the x86-64 psABI calls levels 3 and 4, by the names Linux gives the features; Inductor uses nothing below level 3
_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
)
# Beyond a level, what Inductor's vector ISA detection may add to the compiler's flags (torch/_inductor/cpu_vec_isa.py)
_EXTRAS = ("avx512_vnni", "avx512_bf16", "amx_tile", "amx_fp16")


@dataclass(frozen=True, slots=True)
class Target:
    """A machine and the libraries on it. Text form `device/sku/torch-V/diffusers-V/system`; `parse(str(t)) == t`.

    `sku` is the GPU's name, or the CPU's instruction set: its psABI level and what goes beyond it. A CPU graph uses
    neither triton nor CUDA, so they are no part of a CPU target.
    """

    device: str
    sku: str
    torch: str
    diffusers: str
    system: str

    def __str__(self) -> str:
        return f"{self.device}/{self.sku}/torch-{self.torch}/diffusers-{self.diffusers}/{self.system}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadInput unless `text` is a target's text form."""
        match text.split("/"):
            case [device, sku, torch, diffusers, system] if torch.startswith("torch-") and diffusers.startswith("diffusers-"):
                return cls(device, sku, torch.removeprefix("torch-"), diffusers.removeprefix("diffusers-"), system)
            case _:
                raise BadInput(f"target {text!r} is not device/sku/torch-V/diffusers-V/system.", remedy="`aot ls --json` shows some.")

    @classmethod
    def detect(cls, gpu: str) -> Self:
        """What `gpu` means on this machine; torch is asked for its version without being imported.

        Raises BadInput for a target this version has no row for, BadEnvironment for a torch outside the supported range.
        """
        choice(gpu, known=("cpu",), field="--gpu")
        return cls(
            device="cpu",
            sku=instruction_set(platform.machine(), cpu_flags()),
            torch=supported_torch(_installed("torch")),
            diffusers=Version(_installed("diffusers")).public,
            system=f"{platform.system()}-{platform.machine()}".lower(),
        )

    def parts(self) -> dict[str, str]:
        """The key's parts."""
        return {f"target.{field.name}": getattr(self, field.name) for field in fields(self)}


def supported_torch(text: str) -> str:
    """The public version (`2.15.0`, without `+cu130`); raises BadEnvironment outside the supported range."""
    found = Version(text)
    if not TORCH_MIN <= Version(found.base_version) < TORCH_BELOW:
        raise BadEnvironment(f"torch {text} is not supported; 2.11 to 2.15 are.", remedy=f"pip install 'torch>={TORCH_MIN},<{TORCH_BELOW}'")
    return found.public


def instruction_set(machine: str, flags: set[str]) -> str:
    """The psABI level, and what Inductor may use beyond it: `x86-64-v4+avx512_vnni`. Other machines by their own name."""
    if machine not in ("x86_64", "AMD64"):
        return machine
    level = next((name for name, needs in _LEVELS if needs <= flags), "x86-64")
    return "+".join([level, *(extra for extra in _EXTRAS if extra in flags)])


def cpu_flags() -> set[str]:
    """The features the kernel reports; empty where it reports none this way."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise BadEnvironment(f"{package} is not installed.", remedy=f"pip install {package}") from error
