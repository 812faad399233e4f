"""Runner: the C++ runner of an AOTInductor library, without the package around it and without Inductor.

Private names of torch, checked on 2.11.0, 2.13.0 and 2.15.0: `torch._C._aoti.AOTIModelContainerRunnerCpu`; `…Cuda` was read
there and not run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aot.artifact.book import GraphEntry
from aot.artifact.cudagraph import Recorder, Replayed, Run
from aot.errors import LoadFailed, first_line
from aot.machine.device import wait_for_device
from aot.model.signature import fill
from aot.model.writes import SAME, give_back

# The library's own comparison of every input with what it was compiled for; each reads this once, at its first call. It costs
# four times what the dispatcher's does, which sees more (types, memory): left to those who ask for it. What the environment
# says while graphs are opened is what holds: a variable that is set for a while must not decide by accident.
_CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"


class Library:
    """One library of compiled code in this process: opened once however often it is loaded, and kept."""

    def __init__(self, path: Path, device: torch.device, *, cudagraphs: bool) -> None:
        """Raises RuntimeError when this process cannot open it."""
        self.run: Run = open_runner(path, device, single_threaded=cudagraphs).run
        self._check = os.environ.get(_CHECK_INPUTS)
        self._entered = False

    def first(self, entering: Callable[[], AbstractContextManager[None]]) -> Run:
        """Its `run`, whose first call in this process is made within `entering`, the device's work included: an instruction
        that this machine lacks shows only then."""
        return self.run if self._entered else _Entered(self, entering)

    def enter(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        with _variable(_CHECK_INPUTS, self._check):
            outputs = self.run(tensors)
            wait_for_device()
        self._entered = True
        return outputs


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Within, an environment variable has this value, for C code too."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


_libraries: dict[tuple[str, str, bool], Library] = {}  # by content: a process that loads a thousand times opens each once


def is_open(digest: str, device: str, *, cudagraphs: bool) -> bool:
    """Whether this process has opened a library of that content for the current device."""
    return (digest, str(device_here(device)), cudagraphs) in _libraries


def device_here(device: str) -> torch.device:
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


class Graph:
    """One loaded graph, on `device`. `run(tensors)` takes the weights, then the call's tensors, and returns what the module would."""

    __slots__ = ("device", "entry", "hits", "launches_first", "library", "run_flat", "writes")

    def __init__(self, entry: GraphEntry, library: Path, *, digest: str = "", device: str = "cpu", cudagraphs: bool = False) -> None:
        """`digest`: of the content of the library and of what lies beside it, by which all of a process share it; the file is
        read where it was not opened yet.

        Raises LoadFailed when this process cannot open it.
        """
        self.entry, self.hits, self.device = entry, 0, device_here(device)
        self.writes = entry.writes != SAME  # into its arguments
        # a call returns before its device has computed, and leaves nothing that could not be dropped
        self.launches_first = self.device.type == "cuda" and not self.writes
        key = digest, str(self.device), cudagraphs
        try:
            self.library = _libraries.get(key) or Library(library, self.device, cudagraphs=cudagraphs)
        except RuntimeError as error:
            raise LoadFailed(f"{entry.file}: {first_line(error)}", remedy="build it again with `aot build --rebuild`.") from error
        if digest:
            _libraries[key] = self.library
        self.run_flat: Run = self.library.first(nullcontext)

    def enter_first(self, entering: Callable[[], AbstractContextManager[None]]) -> None:
        """Make the library's first call within `entering`."""
        self.run_flat = self.library.first(entering)

    def replay(self, recorder: Recorder, spent: Callable[[float], None]) -> None:
        """From now on record the launches of each call's shape once, and replay them."""
        self.run_flat = Replayed(self.run_flat, inputs=len(self.entry.signature.specs), recorder=recorder, spent=spent)

    def __deepcopy__(self, _: dict[int, Any]) -> Graph:
        """Shared: a library keeps nothing of a call, so copies of a model use one."""
        return self

    def __str__(self) -> str:
        blocks = f" x{len(self.entry.paths)} blocks" if self.entry.paths != ("",) else ""
        return f"{self.entry.component}{blocks} {self.entry.signature}"

    def run(self, tensors: list[torch.Tensor], call: Any = None) -> Any:
        """What the module would return; of a graph that `writes`, what it would write is written into `call`, its canonical arguments.

        Raises RuntimeError, before computing, when a tensor is not what the graph was compiled for.
        """
        results = self.run_flat(tensors)
        if self.writes:
            return give_back(self.entry.outputs, self.entry.writes, results, call)
        if self.entry.outputs == ("tuple", ("tensor",)):  # every denoiser, at every step
            return (results[0],)
        return fill(self.entry.outputs, iter(results))


@dataclass(slots=True)
class _Entered:
    """Runs; the first time within `entering`, which is then let go."""

    library: Library
    entering: Callable[[], AbstractContextManager[None]] | None

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        entering = self.entering  # another thread may let it go meanwhile
        if entering is None:
            return self.library.run(tensors)
        with entering():
            outputs = self.library.enter(tensors)
        self.entering = None
        return outputs


def open_runner(library: Path, device: torch.device, *, cubins: str = "", single_threaded: bool = False) -> Any:
    """`cubins`: where a library that has its machine code beside it looks for that. `single_threaded` leaves out the container's own
    locks and events, which a stream that is being recorded refuses."""
    if device.type == "cuda":
        return torch._C._aoti.AOTIModelContainerRunnerCuda(str(library), 1, str(device), cubins, single_threaded)  # type: ignore[call-overload]
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
