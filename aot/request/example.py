"""Example: one call of a pipeline, by what it is asked to make."""

from __future__ import annotations

from dataclasses import dataclass

from aot.request.shape import Shape


@dataclass(frozen=True, slots=True)
class Example:
    """Size in pixels, images or videos a call, and whether classifier-free guidance doubles the denoiser's batch.

    `frames` is the length of a video; 0 where the pipeline makes images.
    """

    shape: Shape
    batch: int = 1
    guided: bool = True
    frames: int = 0

    def __str__(self) -> str:
        frames = f" {self.frames} frames" if self.frames else ""
        return f"{self.shape}{frames} batch {self.batch} guidance {'on' if self.guided else 'off'}"
