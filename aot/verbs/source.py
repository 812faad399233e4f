"""Source: what a build is made from, by the words that name it. The command line and Python read them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from aot.recipes.published import Published
from aot.recipes.rows import FAMILIES
from aot.request.origin import Origin
from aot.request.recipe_file import RecipeFile
from aot.request.saved import Saved

Source: TypeAlias = Origin | Saved | RecipeFile | Published


def kind_of(what: str) -> type[Source]:
    """Of which kind it is: a Record's file, a recipe file, a row of ours, else a folder or repository."""
    by_suffix: dict[str, type[Source]] = {".json": Saved, ".py": RecipeFile}
    return by_suffix.get(Path(what).suffix) or (Published if what in FAMILIES else Origin)


def source_of(
    what: str,
    *,
    calls: Sequence[Mapping[str, Any]] = (),
    dtype: str = "float32",
    revision: str = "",
    modules: Sequence[str] = (),
    name: str = "",
    variant: str = "",
) -> Source:
    """What `what` names. Of what else is given it takes that of its kind: nothing is checked, see its own `check`."""
    kind = kind_of(what)
    if kind is Saved:
        return Saved(what, tuple(modules), name)
    if kind is RecipeFile:
        return RecipeFile(what)
    if kind is Published:
        return Published(what, variant or "full", tuple(calls), dtype)
    return Origin(what, tuple(calls) or ({},), dtype, revision)
