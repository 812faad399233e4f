"""Target: where an artifact must run, and whether what was built for one machine runs on another."""

from __future__ import annotations

import ast
import platform
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Self, TypeAlias

from packaging.version import Version

from aot.errors import BadEnvironment, BadInput
from aot.machine.sku import CPU, find_sku

TORCH_MIN, TORCH_BELOW = Version("2.11"), Version("2.16")

# What the x86-64 psABI calls levels 3 and 4, by the names Linux gives the features; Inductor uses nothing below level 3
_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
)
# Beyond a level, what Inductor's vector ISA detection may add to the compiler's flags (torch/_inductor/cpu_vec_isa.py)
_EXTRAS = ("avx512_vnni", "avx512_bf16", "amx_tile", "amx_fp16")
_PREFIXED = {"torch": "torch-", "triton": "triton-", "cuda": "cuda-", "diffusers": "diffusers-"}
_ON_GPU = ("arch", "triton", "cuda")


class Weight(StrEnum):
    """What a difference between the machine that an artifact is for and this one comes to."""

    BLOCKING = "blocking"  # it cannot run, or nobody knows what it would compute
    DEGRADING = "degrading"  # it runs, not as well or not as surely; only where the user allows it
    HARMLESS = "harmless"


class Allow(StrEnum):
    """The degrading differences that a user may allow."""

    SKU = "other-sku"
    TORCH = "other-torch"
    SOURCE = "other-source"  # of the traced functions, which is no field of a target


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a target in which an artifact and a machine differ, what that comes to and why; `allow` is what permits it."""

    field: str
    built: str
    here: str
    weight: Weight
    why: str
    allow: Allow | None = None

    def refused(self, allowed: Collection[Allow]) -> bool:
        """Whether it keeps an artifact from being loaded, where the user allows these."""
        return self.weight is not Weight.HARMLESS and self.allow not in allowed

    def __str__(self) -> str:
        allowed = f" (may be allowed: {self.allow})" if self.allow else ""
        return f"{self.field}: built for {self.built or 'none'}, here {self.here or 'none'}: {self.weight}, {self.why}{allowed}"


@dataclass(frozen=True, slots=True)
class Target:
    """A machine and the libraries on it. Text form `device/sku/[arch/]torch-V/[triton-V/cuda-V/]diffusers-V/system`; it inverts.

    `sku` is the GPU's exact name, or the CPU's instruction set: its psABI level and what goes beyond it. A CPU graph uses
    neither triton nor CUDA and has no `arch` (`sm_90`): all three are empty there, and no part of its key.
    """

    device: str
    sku: str
    torch: str
    diffusers: str
    system: str
    arch: str = ""
    triton: str = ""
    cuda: str = ""

    def __str__(self) -> str:
        order = ("device", "sku", "arch", "torch", "triton", "cuda", "diffusers", "system")
        return "/".join(_PREFIXED.get(name, "") + value for name in order if (value := getattr(self, name)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadInput unless `text` is a target's text form."""
        names = ["device", "sku", "torch", "diffusers", "system"]
        if not text.startswith(f"{CPU}/"):
            names = ["device", "sku", "arch", "torch", "triton", "cuda", "diffusers", "system"]
        words = text.split("/")
        prefixes = [_PREFIXED.get(name, "") for name in names]
        if len(words) != len(names) or not all(word.startswith(prefix) for word, prefix in zip(words, prefixes, strict=True)):
            raise BadInput(
                f"target {text!r} is not device/sku/[arch/]torch-V/[triton-V/cuda-V/]diffusers-V/system.",
                remedy="`aot ls --json` shows some.",
            )
        return cls(**{name: word.removeprefix(prefix) for name, word, prefix in zip(names, words, prefixes, strict=True)})

    @classmethod
    def of_parts(cls, parts: Mapping[str, str]) -> Self:
        """The target in a key's parts; the inverse of `parts`."""
        return cls(**{field.name: parts.get(f"target.{field.name}", "") for field in fields(cls)})

    def parts(self) -> dict[str, str]:
        """The key's parts."""
        return {f"target.{field.name}": value for field in fields(self) if (value := getattr(self, field.name))}

    @classmethod
    def named(cls, gpu: str) -> Self:
        """The target `gpu` (`cpu`, an alias of `aot targets`, or a device's exact name) with the libraries installed here.

        The device need not be here, and torch is asked for its versions without being imported. Raises BadInput for a name
        that has no row, BadEnvironment for libraries that are missing, outside the supported range, or without CUDA.
        """
        if gpu == CPU:
            return cls._here(CPU, cpu_here())
        row = find_sku(gpu)
        return cls._here("cuda", row.name, arch=str(row.architecture))

    @classmethod
    def detect(cls, device: str) -> Self:
        """This machine, its current device of that type. Imports torch for a GPU. Raises BadEnvironment for any other."""
        if device == CPU:
            return cls.named(CPU)
        import torch

        if device != "cuda" or not torch.cuda.is_available():
            raise BadEnvironment(f"there is no {device} device here that artifacts can be for.", remedy="load on a CPU or an NVIDIA GPU.")
        major, minor = torch.cuda.get_device_capability()
        return cls._here("cuda", str(torch.cuda.get_device_name()), arch=f"sm_{major}{minor}")

    @classmethod
    def _here(cls, device: str, sku: str, *, arch: str = "") -> Self:
        return cls(
            device=device,
            sku=sku,
            torch=supported_torch(_installed("torch")),
            diffusers=Version(_installed("diffusers")).public,
            system=f"{platform.system()}-{platform.machine()}".lower(),
            arch=arch,
            triton=Version(_installed("triton")).public if arch else "",
            cuda=torch_cuda() if arch else "",
        )

    def check(self, here: Target, *, also: Collection[str] = ()) -> list[Difference]:
        """Every field in which this target, which an artifact was built for, differs from `here`; `also`: further architectures it has."""
        if self.device != here.device:
            return [Difference("device", self.device, here.device, Weight.BLOCKING, "another kind of machine")]
        rules: dict[str, _Rule] = {
            "arch": _check_arch(here.arch, also),
            "sku": _check_sku(self, here, also),
            "torch": (Weight.DEGRADING, "torch promises this in one direction at most; a canary must pass first", Allow.TORCH),
            "triton": (Weight.HARMLESS, "kernels are in the artifact; only its cache layer is cold", None),
            "cuda": _check_cuda(self.cuda, here.cuda),
            "diffusers": (Weight.HARMLESS, "the code that was traced is compared itself", None),
            "system": (Weight.BLOCKING, "a library of another system", None),
        }
        return [
            Difference(name, getattr(self, name), getattr(here, name), *rule)
            for name, rule in rules.items()
            if getattr(self, name) != getattr(here, name)
        ]


_Rule: TypeAlias = tuple[Weight, str, Allow | None]


def _check_arch(here: str, also: Collection[str]) -> _Rule:
    if here in also:
        return Weight.DEGRADING, "it has kernels for this architecture too, tuned for another", Allow.SKU
    return Weight.BLOCKING, "its kernels are machine code of another architecture", None


def _check_sku(built: Target, here: Target, also: Collection[str]) -> _Rule:
    if built.device == CPU:
        missing = sorted(features(built.sku) - features(here.sku))
        if missing:
            return Weight.BLOCKING, f"this CPU lacks {', '.join(missing)}", None
        return Weight.DEGRADING, "this CPU could do more", Allow.SKU
    if built.arch == here.arch or here.arch in also:
        return Weight.DEGRADING, "it runs, tuned for another", Allow.SKU
    return Weight.BLOCKING, "another architecture", None


def _check_cuda(built: str, here: str) -> _Rule:
    if built.split(".", maxsplit=1)[0] == here.split(".", maxsplit=1)[0]:
        return Weight.HARMLESS, "the same major version", None
    return Weight.DEGRADING, "another major version; a canary must pass first", Allow.TORCH


def features(sku: str) -> set[str]:
    """What a CPU sku stands for: its level's features, those of lower levels, and its extras."""
    level, *extras = sku.split("+")
    names = [name for name, _ in _LEVELS]
    if level not in names:
        return {*extras} if level == "x86-64" else {level, *extras}
    return {*extras, *(feature for _, features in _LEVELS[names.index(level) :] for feature in features)}


def supported_torch(text: str) -> str:
    """The public version (`2.15.0`, without `+cu130`); raises BadEnvironment outside the supported range."""
    found = Version(text)
    if not TORCH_MIN <= Version(found.base_version) < TORCH_BELOW:
        raise BadEnvironment(f"torch {text} is not supported; 2.11 to 2.15 are.", remedy=f"pip install 'torch>={TORCH_MIN},<{TORCH_BELOW}'")
    return found.public


def torch_cuda() -> str:
    """The CUDA version that the installed torch was built with, read from its version file. Raises BadEnvironment when with none."""
    if loaded := sys.modules.get("torch"):
        found = loaded.version.cuda
    else:
        spec = find_spec("torch")
        origin = spec.origin if spec else None
        assert origin is not None
        found = constant(Path(origin).with_name("version.py").read_text(), "cuda")
    if not found:
        raise BadEnvironment(
            "this torch was built without CUDA, and building for a GPU needs the CUDA build (not a GPU).",
            remedy="install torch from the ordinary package index, whose Linux wheels are the CUDA build.",
        )
    return str(found)


def constant(source: str, name: str) -> str | None:
    """The value that a module's source assigns to `name`, without running it."""
    for node in ast.parse(source).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            return None if node.value.value is None else str(node.value.value)
    return None


def cpu_here() -> str:
    """This machine's CPU, as a target names it."""
    return instruction_set(platform.machine(), cpu_flags())


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
        found: str | None = version(package)
    except PackageNotFoundError as error:
        raise BadEnvironment(f"{package} is not installed.", remedy=f"pip install {package}") from error
    if found is None:  # whatever the types say: a file of root's that this user may not read
        raise BadEnvironment(f"{package} is installed, and its metadata cannot be read.", remedy="let this user read the packages.")
    return found
