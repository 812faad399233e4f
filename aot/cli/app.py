"""`aot`: the program, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aot.cache_store.errors import CodedError, named
from aot.cache_store.root import default_root
from aot.errors import INTERRUPTED, exit_code
from aot.version import VERSION

# a verb's module is imported when it is typed: all of them would take longer than `aot --help` may
VERBS = {
    "build": "Compile a recipe, a pipeline or a Record for one machine type into an artifact of the local store.",
    "matrix": "Many builds from one file: models by GPUs, torch versions, modes and sizes.",
    "record": "Run a program unchanged, and write down what its pipelines call: a file that `aot build` builds from.",
    "run": "Run a program unchanged, its pipelines served from artifacts, and prove at its end what was used.",
    "push": "Upload an artifact with its signatures: to the Hub in one commit, with a card that lists what the repository holds.",
    "lookup": "Tell what a store has of a recipe, and whether there is one for my machine: one request, and nothing is downloaded.",
    "pull": "Download the best artifact for this machine into the local store, and say why the others are not taken.",
    "lock": "Pin the best artifact for a machine by digest and commit in aot.lock (or the file that AOT_LOCK names).",
    "verify": "Check an artifact of the local store: who vouches for it, and every byte of every file.",
    "ls": "List the artifacts of the local store, newest first.",
    "show": "Show an artifact: every key part, layers and sizes, what the build measured, the quality certificate.",
    "check": "Say whether an artifact would be loaded on this machine: each field that differs, and what that comes to.",
    "explain": "Say what would serve a pipeline, and what stands in the way: what is asked for against the artifacts of the local store.",
    "diff": "Say in what two artifacts differ: each part of their keys, and what it would come to.",
    "doctor": "Look at what this machine has of all that building and serving need, and say the remedy for what it lacks.",
    "bench": "Measure start-up eager, compiled cold, compiled with a warm directory and loaded from the artifact (built if absent).",
    "prune": "Remove artifacts from the local store, and every byte that no artifact needs.",
    "fsck": "Read every byte of a store, and tell what is not as promised. Exits with 7 when something is and was not repaired.",
    "recipes": "List the recipes: components, divisors, scopes, modes, whether fuse_qkv applies, and the rows of each.",
    "modes": "List the mode words: what each does, sets and costs, and which devices can have it in an artifact.",
    "targets": "List the GPUs that can be built for, or tell what this machine is.",
    "trust": "Whose artifacts may run here: list keys, add them, revoke them.",
}
PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # plain help: rich alone would take half of the time that `aot --help` may take
}


class Verbs(TyperGroup):
    """The verbs by name and first line; what one takes is known once it is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and load(name or ""), rest


def load(name: str) -> Any:
    """The command of a verb."""
    verb = getattr(import_module(f"aot.cli.{name}"), name)
    if isinstance(verb, typer.Typer):
        return typer.main.get_group(verb)
    alone = typer.Typer(**PLAIN)
    alone.command(name)(verb)
    return typer.main.get_command(alone)


def _version(asked: bool) -> None:
    if asked:
        print(VERSION)
        raise typer.Exit


def _own_options(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None: ...


app = typer.Typer(
    cls=Verbs,
    callback=_own_options,
    help="Compile a diffusion model once per machine type, ship the result like a package, start without compiling.",
    no_args_is_help=True,
    **PLAIN,
)
for _name, _line in VERBS.items():
    app.command(_name, help=_line)(lambda: None)


def main() -> None:
    """Run the program; a known error is a sentence on stderr and its exit code, an unknown one a traceback."""
    try:
        with named(default_root(os.environ)):
            app()
    except CodedError as error:
        print(f"error: {error.code} {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  fix: {error.remedy}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        print("error: interrupted; nothing was stored.", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
