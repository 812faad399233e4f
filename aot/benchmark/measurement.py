"""Measurement: what a bench measures. Imports no torch: the command line checks it."""

from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """A way to get from a pipeline to its first outputs."""

    EAGER = "eager"
    COLD = "cold"
    JIT_WARM = "jit-warm"
    REGIONAL_COLD = "regional-cold"  # diffusers' compile_repeated_blocks of the denoisers, all else eager
    REGIONAL_WARM = "regional-warm"
    ARTIFACT = "artifact"


WAYS = tuple(Way)
BEFORE = ("interpreter", "imports", "weights")  # what every way waits for, from `python` on, before it starts up
WARMED_BY = {Way.JIT_WARM: Way.COLD, Way.REGIONAL_WARM: Way.REGIONAL_COLD}  # whose directory is what makes it warm
COMPARED = (Way.EAGER, Way.ARTIFACT)  # the least that a bench measures: one against the other


@dataclass(frozen=True, slots=True)
class Measurement:
    """The ways, in the order of WAYS, rounds of steady-state calls, and the denoising steps of a whole call."""

    steps: int
    rounds: int
    ways: tuple[Way, ...] = WAYS
