"""What `aot build` builds from where that is no recipe of ours: a folder, a repository, a Record, a recipe file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from aot.choice import choice
from aot.errors import BadInput, Unsupported
from aot.machine.sku import CPU
from aot.recipes.published import Published
from aot.recipes.rows import FAMILIES
from aot.request.origin import Origin
from aot.request.recipe_file import RecipeFile
from aot.request.request import DTYPES
from aot.request.saved import Saved
from aot.verbs.source import Source, kind_of
from aot.verbs.source import source_of as named

_WHAT = "A recipe, for example pixart-alpha; a pipeline's folder or repository; a Record (.json); a recipe file (.py)."
_CALL = "Arguments of a call of the pipeline, height=1024,width=832; may be repeated. Not for a recipe."
_SCOPE = "whole: one graph a component. regional: one a kind of repeated block. Default: whole for a recipe, else regional."
_DTYPE = "float32, bfloat16 or float16. Default: float32; bfloat16 for a folder or repository on a GPU."
What: TypeAlias = Annotated[str, typer.Argument(help=_WHAT, metavar="WHAT")]
Calls: TypeAlias = Annotated[list[str], typer.Option("--call", help=_CALL, metavar="NAME=VALUE,…")]
Revision: TypeAlias = Annotated[str, typer.Option(help="Of a repository: a branch, tag or commit.")]
Modules: TypeAlias = Annotated[
    list[str], typer.Option("--module", help="A module whose classes a Record may name, which is imported; may be repeated.")
]
Name: TypeAlias = Annotated[str, typer.Option(help="The artifact's. Default: the recipe's; else that of the folder, repository or file.")]
Scope: TypeAlias = Annotated[str, typer.Option(help=_SCOPE)]
Dtype: TypeAlias = Annotated[str, typer.Option(help=_DTYPE)]


def is_source(what: str) -> bool:
    """Whether `what` names something else than a recipe of calls and shapes: those have no slash and no suffix."""
    return kind_of(what) is not Origin or "/" in what or Path(what).is_dir()


def source_of(
    what: str, *, gpu: str, calls: Sequence[str], dtype: str, revision: str, modules: Sequence[str], name: str, recipes_own: dict[str, Any]
) -> Source:
    """What `what` names. Raises BadInput or Unsupported naming the option: `recipes_own` are those that only recipes take."""
    for option, given in recipes_own.items():
        if given and not (what in FAMILIES and option == "--variant"):
            raise Unsupported(
                f"{option}: a recipe of ours has such; {what} is none.", remedy="say what is called with --call NAME=VALUE,…."
            )
    kind = kind_of(what)
    if kind is Saved:
        _refuse({"--call": calls, "--dtype": dtype, "--revision": revision}, "a Record has its own")
    elif kind is RecipeFile:
        _refuse({"--call": calls, "--dtype": dtype, "--revision": revision, "--module": modules}, "a recipe file has its own")
    else:
        _refuse({"--module": modules}, "only a Record needs it")
        dtype = choice(dtype or ("float32" if gpu == CPU else "bfloat16"), known=DTYPES, field="--dtype")
    if kind is Published:
        _refuse({"--revision": revision}, "only a repository has it")
    found = named(
        what,
        calls=list(map(parse_call, calls)),
        dtype=dtype,
        revision=revision,
        modules=modules,
        name=name,
        variant=recipes_own["--variant"],
    )
    found.check()
    return found


def _refuse(given: dict[str, Any], why: str) -> None:
    for option, value in given.items():
        if value:
            raise Unsupported(f"{option}: {why}.", remedy="leave it out.")


def parse_call(text: str) -> dict[str, Any]:
    """`height=1024,width=832,prompt="two dogs, and a cat"`: the arguments of a call. Numbers, true, false and null are such; all else is
    text, in quotes where it has a comma. Raises BadInput."""
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace, words.whitespace_split, words.commenters = ",", True, ""
    try:
        return dict(_argument(word) for word in words)
    except ValueError as error:
        raise BadInput(f"--call {text!r} is not NAME=VALUE,…: {error}.", remedy="for example --call height=1024,width=832.") from error


def _argument(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"{word!r} has no name and value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value
