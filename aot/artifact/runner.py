"""Runner: the C++ runner of an AOTInductor library, without the package around it and without Inductor.

Private names of torch, checked on 2.11.0, 2.13.0 and 2.15.0: `torch._C._aoti.AOTIModelContainerRunnerCpu`; `…Cuda` was read
there and not run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aot.artifact.book import GraphEntry
from aot.artifact.cudagraph import Recorder, Replayed, Run
from aot.errors import LoadFailed
from aot.machine.device import wait_for_device
from aot.model.signature import fill

# The library compares every input, weights included, with what it was compiled for, before it computes anything; each
# library reads this once, at its first call. Without it a wrong dtype or stride gives wrong numbers and no error.
_CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"


class Graph:
    """One loaded library. `run(tensors)` takes the weights, then the call's tensors, and returns what the module would."""

    __slots__ = ("entry", "hits", "run_flat")

    def __init__(self, entry: GraphEntry, library: Path, *, device: str = "cpu", cudagraphs: bool = False) -> None:
        """Raises LoadFailed when the library cannot be opened by this process."""
        os.environ[_CHECK_INPUTS] = "1"
        try:
            self.run_flat: Run = _runner(library, device, single_threaded=cudagraphs).run
        except RuntimeError as error:
            raise LoadFailed(f"{entry.file}: {str(error).splitlines()[0]}", remedy="build it again with `aot build --rebuild`.") from error
        self.entry = entry
        self.hits = 0

    def enter_first(self, entering: Callable[[], AbstractContextManager[None]]) -> None:
        """Make the first call within `entering`, the device's work included: an instruction that this machine lacks shows only then."""
        self.run_flat = _Entered(self.run_flat, entering)

    def replay(self, recorder: Recorder, spent: Callable[[float], None]) -> None:
        """From now on record the launches of each call's shape once, and replay them."""
        self.run_flat = Replayed(self.run_flat, inputs=len(self.entry.signature.specs), recorder=recorder, spent=spent)

    def __deepcopy__(self, _: dict[int, Any]) -> Graph:
        """Shared: a library keeps nothing of a call, so copies of a model use one."""
        return self

    def __str__(self) -> str:
        blocks = f" x{len(self.entry.paths)} blocks" if self.entry.paths != ("",) else ""
        return f"{self.entry.component}{blocks} {self.entry.signature}"

    def run(self, tensors: list[torch.Tensor]) -> Any:
        """Raises RuntimeError, before computing, when a tensor is not what the graph was compiled for."""
        outputs = self.run_flat(tensors)
        self.hits += 1
        if self.entry.outputs == ("tuple", ("tensor",)):  # every denoiser, at every step
            return (outputs[0],)
        return fill(self.entry.outputs, iter(outputs))


@dataclass(slots=True)
class _Entered:
    """Runs; the first time within `entering`, which is then let go."""

    run: Run
    entering: Callable[[], AbstractContextManager[None]] | None

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.entering is None:
            return self.run(tensors)
        with self.entering():
            outputs = self.run(tensors)
            wait_for_device()
        self.entering = None
        return outputs


def _runner(library: Path, device: str, *, single_threaded: bool) -> Any:
    """`single_threaded` leaves out the container's own locks and events, which a stream that is being recorded refuses."""
    if device == "cuda":
        here = f"cuda:{torch.cuda.current_device()}"
        return torch._C._aoti.AOTIModelContainerRunnerCuda(str(library), 1, here, "", single_threaded)  # type: ignore[call-overload]
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
