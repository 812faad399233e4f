"""Recipe file: a user's own recipe, which is a Python file that makes a pipeline and calls it."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.errors import BadInput
from aot.request.named import Named, artifact_name

if TYPE_CHECKING:
    from aot.request.record import Record

_EXAMPLE = "def pipeline(): ...  and  def call(pipeline): return pipeline('a cat', height=1024)"


@dataclass(frozen=True, slots=True)
class RecipeFile(Named):
    """The file at `path`: its function `pipeline()` returns a diffusers pipeline or a module, and every function whose name begins
    with `call` takes that and calls it. It is run, in the process that builds: it is the user's own."""

    path: str

    def check(self) -> None:
        """Raises BadInput where there is no file."""
        if not Path(self.path).is_file():
            raise BadInput(f"there is no file {self.path}.", remedy="name a Python file with a pipeline and a call of it.")

    @property
    def own_name(self) -> str:
        """The artifact's, where none is given: the file's, as such names are written."""
        return artifact_name(Path(self.path).stem)

    def record(self, name: str = "") -> Record:
        """Run the file, and write down what its calls call. Raises BadInput for a file without them, and what the file raises."""
        import torch

        from aot.request.record import record

        found = runpy.run_path(self.path, run_name=Path(self.path).stem)
        pipeline = _function(found, "pipeline", self.path)()
        calls = [value for key, value in found.items() if key.startswith("call") and callable(value)]
        if not calls:
            raise BadInput(f"{self.path} has no function call(pipeline).", remedy=f"write {_EXAMPLE}.")
        with record(pipeline, name=name or self.own_name) as recorded, torch.no_grad():
            for call in calls:
                call(pipeline)
        return recorded


def _function(found: Mapping[str, Any], name: str, path: str) -> Any:
    if not callable(found.get(name)):
        raise BadInput(f"{path} has no function {name}().", remedy=f"write {_EXAMPLE}.")
    return found[name]
