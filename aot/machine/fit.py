"""Fit: whether what was built for one machine runs on another, by the parts of its key."""

from __future__ import annotations

from collections.abc import Mapping

from aot.machine.target import Difference, Target, Weight, features

PACKAGED = "packaged"  # the layout of an artifact that is somebody's packages, of which only their bytes tell what they are for
OR = " or "  # between the versions of torch that may have made them
# Inductor's words for vector instructions, where they stand for more than the processor's feature of that name
_VECTORS = {"avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, "default": set[str]()}


def is_packaged(parts: Mapping[str, str]) -> bool:
    """Whether a key is of somebody's packages."""
    return parts.get("layout") == PACKAGED


def built_for(parts: Mapping[str, str], here: Target) -> list[Difference]:
    """Every field in which the machine that an artifact with these key parts was built for differs from `here`."""
    built = Target.of_parts(parts)
    if is_packaged(parts):
        return _packaged_for(built, here)
    return built.check(here, also=parts.get("also", "").split())


def _packaged_for(built: Target, here: Target) -> list[Difference]:
    """By what packages tell: the architectures of their code, the minor versions of torch that may have made them."""
    if built.device != here.device:
        return [Difference("device", built.device, here.device, Weight.BLOCKING, "another kind of machine")]
    found = []
    if built.system != here.system:
        found.append(Difference("system", built.system, here.system, Weight.BLOCKING, "a library of another system"))
    if here.arch and built.arch and here.arch not in built.arch.split():
        found.append(Difference("arch", built.arch, here.arch, Weight.BLOCKING, "their kernels are machine code of another architecture"))
    if not here.arch and (missing := _vectors(built.sku) - features(here.sku)):
        why = f"this CPU lacks {', '.join(sorted(missing))}"
        found.append(Difference("sku", built.sku, here.sku, Weight.BLOCKING, why))
    minor = ".".join(here.torch.split(".")[:2])
    if minor not in built.torch.split(OR):
        why = "they call torch as another version's headers have it, and nothing says that this one answers"
        found.append(Difference("torch", built.torch, here.torch, Weight.BLOCKING, why))
    return found


def _vectors(sku: str) -> set[str]:
    return set().union(*(_VECTORS.get(word, {word}) for word in sku.split("+") if word))
