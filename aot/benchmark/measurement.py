"""Measurement: what a bench measures. Imports no torch: the command line checks it."""

from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """A way to get from a pipeline to its first outputs."""

    EAGER = "eager"
    COLD = "cold"
    JIT_WARM = "jit-warm"
    ARTIFACT = "artifact"


WAYS = tuple(Way)
COMPARED = (Way.EAGER, Way.ARTIFACT)  # the least that a bench measures: one against the other


@dataclass(frozen=True, slots=True)
class Measurement:
    """The ways, in the order of WAYS, rounds of steady-state calls, and the denoising steps of a whole call."""

    steps: int
    rounds: int
    ways: tuple[Way, ...] = WAYS
