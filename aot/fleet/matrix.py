"""Matrix: a TOML file of models, and the cells that it comes to: each one artifact, one `aot build`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Self

from aot.choice import choice
from aot.compiler.isolated import torch_version
from aot.errors import BadInput
from aot.machine.sku import CPU, find_sku
from aot.request.mode import NO_WORDS, TIMED_OPTIONS, Mode
from aot.request.options import Options, option_of

# what `aot build` takes of a model, and how its value is written in the file; the axes are beside them
_TEXTS = ("variant", "guidance", "dtype", "scope", "components", "lora-targets", "layout", "weights", "revision", "name", "memory-format")
_NUMBERS = ("lora-rank",)
_FLAGS = ("dynamic", "fuse-qkv", "no-cache-layer", "untuned")
_LISTS = ("batch", "frames", "module", "option", "also")
_AXES = ("gpus", "torch", "modes", "shapes", "calls")
_OWN = ("what", "cpus", "memory", *_AXES)
_TOP = ("store", "cpus", "memory", "model", "exclude", *_AXES[:3])
_EXCLUDED_BY = ("what", "gpu", "torch", "mode", "shape", "call", "variant")
_GIB = 2**30
DEFAULT_MEMORY = 6 * _GIB  # of one cell: torch and its compiler take 2 to 3 without their models


@dataclass(frozen=True, slots=True)
class Cell:
    """One artifact to build. `options` are those of `aot build` beside the axes, as it takes them; an empty `torch` or `mode` is its
    default. `sizes` are values of its `--shape` or `--call`, all in this artifact."""

    what: str
    gpu: str
    torch: str = ""
    mode: str = ""
    sizes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    cpus: int = field(default=1, compare=False)
    memory: int = field(default=DEFAULT_MEMORY, compare=False)  # bytes

    def arguments(self, gpu: str = "") -> list[str]:
        """Those of `aot build`; for another GPU, where one is named."""
        axes = {"--gpu": gpu or self.gpu, "--torch": self.torch, "--mode": self.mode}
        named = [word for option, value in axes.items() if value for word in (option, value)]
        size = "--shape" if is_recipe(self.what) else "--call"
        return [self.what, *named, *(word for value in self.sizes for word in (size, value)), *self.options]

    def __str__(self) -> str:
        words = (self.what, self.variant, self.gpu, f"torch {self.torch}" if self.torch else "", self.mode, " ".join(self.sizes))
        return " ".join(filter(None, words))

    @property
    def variant(self) -> str:
        return "".join(self.given("--variant"))

    def given(self, option: str) -> list[str]:
        """What an option is given, each time."""
        return [value for name, value in zip(self.options, self.options[1:], strict=False) if name == option]

    def paths(self) -> list[str]:
        """What it names that is a file or folder of this machine."""
        return [text for text in (self.what, *self.given("--weights")) if not is_recipe(text) and Path(text).exists()]

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU itself is needed: its mode or an option of Inductor's times kernels, or folds weights into the code on it."""
        if self.gpu == CPU or "--untuned" in self.options:
            return False
        mode = Mode.parse(self.mode or NO_WORDS)
        options = {option_of(text)[0].removeprefix("inductor.") for text in self.given("--option")}
        return bool(mode.timed or mode.freezing or TIMED_OPTIONS & options)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The cells of a file, in its order, each once; and the store that they go to, or an empty text: this machine's alone."""

    cells: tuple[Cell, ...]
    store: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises BadInput naming the field, for a file that cannot be read, or that says something unknown or empty."""
        try:
            found = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadInput(f"{path} cannot be read as TOML: {error}.", remedy="`aot matrix --help` shows a file.") from error
        return cls.of(found, str(path))

    @classmethod
    def of(cls, found: Mapping[str, Any], name: str) -> Self:
        """Of a file's content; `name` is for errors."""
        _check_names(found, _TOP, name)
        models = _tables(found, "model", name)
        if not models:
            raise BadInput(f"{name}: no [[model]].", remedy='begin with [[model]] and what = "pixart-alpha".')
        excluded = _tables(found, "exclude", name)
        for table in excluded:
            _check_names(table, _EXCLUDED_BY, f"{name}: [[exclude]]")
            _texts(table, tuple(table), f"{name}: [[exclude]]")
        cells = [cell for model in models for cell in _cells(model, found, name) if not any(_excludes(one, cell) for one in excluded)]
        if not cells:
            raise BadInput(f"{name}: [[exclude]] leaves no cell.", remedy="exclude less.")
        if (spaces := sum("--layout" in cell.options for cell in cells)) > 1:
            raise BadInput(
                f"{name}: layout is of {spaces} cells, and in a repository the packages of one would take the place of another's.",
                remedy="give it to one cell, or push the others by `aot push --variant`.",
            )
        store = found.get("store", "")
        if not isinstance(store, str):
            raise BadInput(f"{name}: store is {store!r}, and it is a text.", remedy='for example store = "hf://me/compiled".')
        return cls(tuple(dict.fromkeys(cells)), store)

    def shard(self, text: str) -> Self:
        """Every n-th cell from the i-th on, of `i/n`. Raises BadInput."""
        place, slash, count = text.partition("/")
        if not (slash and place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
            raise BadInput(f"--shard {text!r} is not I/N with 1 <= I <= N.", remedy="for example --shard 1/4.")
        return type(self)(self.cells[int(place) - 1 :: int(count)], self.store)


@cache
def is_recipe(what: str) -> bool:
    """Whether its sizes are `--shape`, as a recipe's of ours are; of all else they are `--call`."""
    from aot.recipes import RECIPES

    return what in RECIPES and not Path(what).is_dir()


def _cells(model: Mapping[str, Any], top: Mapping[str, Any], name: str) -> Iterator[Cell]:
    what = model.get("what")
    if not isinstance(what, str) or not what:
        raise BadInput(f"{name}: a [[model]] without what.", remedy='for example what = "pixart-alpha".')
    where = f"{name}: {what}"
    _check_names(model, (*_OWN, *_TEXTS, *_NUMBERS, *_FLAGS, *_LISTS), where)
    gpus, versions, modes = (_axis(model.get(axis, top.get(axis, [])), axis, where) for axis in _AXES[:3])
    versions = list(map(torch_version, versions))
    if not gpus:
        raise BadInput(f"{where}: no gpus.", remedy='for example gpus = ["h200", "rtx-4090"], at the top of the file or in [[model]].')
    sizes = _sizes(model, what, where)
    options = tuple(_options(model, where))
    for mode in modes or [""]:
        Options.parse({"mode": mode, "options": dict(map(option_of, _axis(model.get("option", []), "option", where)))})
    cpus, memory = (_number(model.get(key, top.get(key, default)), key, where) for key, default in (("cpus", 1), ("memory", 0)))
    for gpu, torch, mode, size in product(map(_gpu, gpus), versions or [""], modes or [""], sizes):
        yield Cell(what, gpu, torch, mode, size, options, cpus, memory * _GIB or DEFAULT_MEMORY)


def _gpu(text: str) -> str:
    return CPU if text == CPU else find_sku(text).alias


def _sizes(model: Mapping[str, Any], what: str, where: str) -> list[tuple[str, ...]]:
    own, other = ("shapes", "calls") if is_recipe(what) else ("calls", "shapes")
    if other in model:
        raise BadInput(f"{where}: {other} are not what it takes.", remedy=f"write {own}.")
    given = model.get(own, [])
    if not isinstance(given, list) or not all(_is_texts(one) or isinstance(one, str) for one in given):
        raise BadInput(
            f"{where}: {own} is {given!r}.", remedy=f'a list: a text is one artifact, a list of texts too: {own} = ["1024x1024"].'
        )
    return [(one,) if isinstance(one, str) else tuple(one) for one in given] or [()]


def _options(model: Mapping[str, Any], where: str) -> Iterator[str]:
    _texts(model, [name for name in _TEXTS if name in model], where)
    for name in _TEXTS:
        if model.get(name):
            yield from (f"--{name}", model[name])
    for name in _NUMBERS:
        if name in model:
            yield from (f"--{name}", str(_number(model[name], name, where)))
    for name in _LISTS:
        for value in _axis(model.get(name, []), name, where, numbers=True):
            yield from (f"--{name}", value)
    for name in _FLAGS:
        if choice(str(model.get(name, False)), known=("True", "False"), field=f"{where}: {name}") == "True":
            yield f"--{name}"


def _axis(value: Any, name: str, where: str, *, numbers: bool = False) -> list[str]:
    kinds = (str, int) if numbers else (str,)
    if not isinstance(value, list) or not all(isinstance(one, kinds) and not isinstance(one, bool) and one != "" for one in value):
        raise BadInput(f"{where}: {name} is {value!r}, and it is a list.", remedy=f'for example {name} = ["…"].')
    return list(map(str, value))


def _number(value: Any, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{where}: {name} is {value!r}, and it is a number.", remedy=f"for example {name} = 2.")
    return value


def _texts(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if not isinstance(table[name], str):
            raise BadInput(f"{where}: {name} is {table[name]!r}, and it is a text.", remedy=f'for example {name} = "…".')


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _tables(found: Mapping[str, Any], key: str, name: str) -> list[Mapping[str, Any]]:
    value = found.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadInput(f"{name}: {key} is no list of tables.", remedy=f"write [[{key}]] above each.")
    return value


def _check_names(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        choice(name, known=known, field=f"{where}: field")


def _excludes(rule: Mapping[str, str], cell: Cell) -> bool:
    """Whether every field of the rule, which may have `*`, is that of the cell; a size by any of its own."""
    texts = {"what": cell.what, "gpu": cell.gpu, "torch": cell.torch, "mode": cell.mode, "variant": cell.variant}
    values: dict[str, tuple[str, ...]] = {name: (text,) for name, text in texts.items()}
    values["shape"] = values["call"] = cell.sizes
    return all(any(fnmatchcase(one, pattern) for one in values[name]) for name, pattern in rule.items())
