"""Record: what a pipeline did: which modules it called, and how. No weight, no prompt, no picture is in it."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import nn

from aot.errors import BadInput
from aot.model.casting import put_on, take_off
from aot.model.collector import note_outputs
from aot.model.hollow import hollow
from aot.model.recorder import RecordedCall, Recorder, roots_of
from aot.model.wrapped import Pickler
from aot.request.saved import Saved, save


@dataclass(slots=True)
class Record:
    """The components that were called, by dotted path, their distinct calls in the order in which they first came, and the
    components that were left alone, with the reason. `name` is that of an artifact built from it."""

    name: str
    modules: dict[str, nn.Module] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    attention: tuple[str, ...] = ()  # the backend that was active, where calls were seen; several cannot be built
    roots: dict[str, nn.Module] = field(default_factory=dict)  # the pipeline's own parts that these modules are, or are in

    @classmethod
    def of(cls, recorder: Recorder, owner: Any, name: str = "") -> Record:
        """What a recorder has written down of `owner` so far."""
        modules = {path: module for path, module in recorder.modules.items() if path not in recorder.left}
        inside = {path.partition(".")[0] for path in modules}
        roots = {part: module for part, module in roots_of(owner).items() if part in inside}
        return cls(name or _name(owner), modules, recorder.calls, dict(recorder.left), tuple(sorted(recorder.attention)), roots)

    @classmethod
    def named(cls, owner: Any, **fields: Any) -> Record:
        """An empty one, of that pipeline's name."""
        return cls(_name(owner), **fields)

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, from which any host builds: without weights, prompts or code. Raises Unsupported for what its
        classes and configs alone do not make."""
        save(self, path)

    @classmethod
    def load(cls, path: str | Path, *, modules: Collection[str] = ()) -> Record:
        """Read what `save` wrote, which may come from anybody. `modules`: those beside diffusers and transformers whose classes may be
        used; they are imported. Raises BadInput, Unsupported."""
        saved = Saved(str(path), tuple(modules))
        saved.check()
        return saved.record()

    def check(self) -> None:
        """Raises BadInput where there is nothing to build, or what no other process could have."""
        if not self.calls:
            reasons = "; ".join(f"{path}: {why.rstrip('.')}" for path, why in self.left.items())
            raise BadInput(
                f"nothing was recorded of {self.name}{': ' * bool(reasons)}{reasons}.", remedy="call the pipeline while it is recorded."
            )
        if len(self.attention) > 1:
            raise BadInput(
                f"{self.name} was called under several attention backends: {', '.join(self.attention)}.",
                remedy="record what is called under each by itself.",
            )
        for path, module in self.modules.items():
            if here := next((child for child in module.modules() if type(child).__module__ == "__main__"), None):
                raise BadInput(
                    f"{path} has a {type(here).__qualname__}, which is defined in the program that runs, where no other process finds it.",
                    remedy="put the class into a file that can be imported.",
                )

    def message(self, work: Path) -> dict[str, Any]:
        """For the process that builds, which finds the packed Record in the folder `work`."""
        packed = work / "record"
        self.pack(packed)
        return {"record": str(packed), "path": sys.path}

    def pack(self, path: Path) -> None:
        """Write it for a process of this very user to `unpack`: as it is, its modules without the memory of their weights.

        Raises BadInput for a module that no other process could have: one of a class or function made in a session.
        """
        modules = {name: hollow(module) for name, module in self.modules.items()}
        cast = {name: take_off(module) for name, module in modules.items()}
        try:
            with path.open("wb") as file:
                Pickler(file).dump((Record(self.name, modules, self.calls, self.left, self.attention), cast))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BadInput(
                f"{self.name} cannot be built in another process: {error}",
                remedy="define what it names at the top of a file that can be imported.",
            ) from error

    @classmethod
    def unpack(cls, path: Path) -> Self:
        """What `pack` wrote. Runs code that the file names: never one that comes from elsewhere."""
        with path.open("rb") as file:
            found: Self
            found, cast = pickle.load(file)  # noqa: S301
        for name, module in found.modules.items():
            put_on(module, cast[name])
            note_outputs(module)
        return found


@contextmanager
def record(owner: Any, *, name: str = "", computes: bool = False) -> Iterator[Record]:
    """Within, calls of `owner`, a diffusers pipeline or a module, are written down into the Record, which is complete at the end.

    Each call of a component is answered with zeros of the right shapes, at next to no cost and without its weights; with
    `computes` it is only watched. The pipeline's own code runs as it is. `name`: the artifact's, by default that of the class.
    """
    recorder, found = Recorder(owner, computes=computes), Record(name or _name(owner))
    with recorder.watching():
        yield found
    done = Record.of(recorder, owner)
    found.modules, found.calls, found.left, found.roots = done.modules, done.calls, done.left, done.roots
    found.attention = done.attention


def _name(owner: Any) -> str:
    """FluxImg2ImgPipeline: flux-img2img."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(owner).__name__.removesuffix("Pipeline"))
    return words.lower().replace("img2-img", "img2img") or "model"
