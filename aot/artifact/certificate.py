"""Quality certificate: compiled outputs compared with eager's on the same inputs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from aot.errors import OutsideTolerance
from aot.model.signature import flatten
from aot.request.mode import LOW_PRECISION, Mode

# Relative L2. float32: what reordering sums costs a 28-layer transformer, measured at most 5e-6 on all six denoisers;
# the half formats: a few units in the last place (2^-8 and 2^-11) through as many layers.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
LOW_PRECISION_TOLERANCE = 2e-2  # TF32 keeps 10 bits of mantissa; the mode's user accepted that
# Against float32's own answers a half format's rounding counts in full, and grows with the root of the depth: eager bfloat16 was
# measured at 1.6e-2 in 12 layers of SD3, 0.8 of its tolerance; a model of 60 layers would come to 1.8 times it
_AGAINST_FLOAT32 = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of outputs. `max_abs` in the outputs' units, `relative_l2` a ratio, `psnr` in dB against the reference's peak."""

    max_abs: float
    relative_l2: float
    psnr: float | None  # None: the outputs are equal

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(got: Any, expected: Any) -> Comparison:
    """Compare every tensor of two values of one structure, in float64. NaN anywhere, or another structure, is infinitely wrong."""
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    same_form = flatten(got, ours) == flatten(expected, theirs)
    if not same_form or [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return Comparison(math.inf, math.inf, -math.inf)
    a, b = (torch.cat([tensor.detach().double().flatten().cpu() for tensor in tensors]) for tensors in (ours, theirs))
    error = a - b
    if not bool(torch.isfinite(error).all()):
        return Comparison(math.inf, math.inf, -math.inf)
    mean_square, peak = float(error.square().mean()), float(b.abs().max())
    return Comparison(
        max_abs=float(error.abs().max()),
        relative_l2=float(error.norm() / b.norm().clamp_min(1e-30)),
        psnr=None if mean_square == 0 else 10 * math.log10(max(peak, 1e-30) ** 2 / mean_square),
    )


def tolerance(mode: Mode, dtype: str) -> float:
    """The largest relative L2 error that a build in this mode may have."""
    allowed = TOLERANCE[dtype]
    return max(allowed, LOW_PRECISION_TOLERANCE) if LOW_PRECISION in mode.words else allowed


def golden_tolerance(mode: Mode, dtype: str, *, of_eager: bool) -> float:
    """The same for a canary, against golden outputs of the graphs themselves or, `of_eager`, of the eager model in float32."""
    return tolerance(mode, dtype) * (_AGAINST_FLOAT32 if of_eager else 1)


def check(comparison: Comparison, *, what: str, allowed: float) -> None:
    """Raises OutsideTolerance when the error is larger than allowed, or not a number."""
    if not comparison.relative_l2 <= allowed:
        raise OutsideTolerance(
            f"{what}: relative L2 error {comparison.relative_l2:.2e} against eager, allowed are {allowed:.0e}.",
            remedy="choose a mode without low-precision or max-optimize, or --dtype float32; the artifact was not stored.",
        )
