"""`aot`: the program, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys

import typer

from aot.cache_store.errors import CodedError, named
from aot.cache_store.root import default_root
from aot.cli import bench, build, check, fsck, lock, lookup, ls, modes, prune, pull, push, recipes, show, targets, verify
from aot.cli.trust import trust
from aot.errors import INTERRUPTED, exit_code

app = typer.Typer(
    help="Compile a diffusion model once per machine type, ship the result like a package, start serving in about a second.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone would take half of the time that `aot --help` may take
)
for verb in (build, push, lookup, pull, lock, verify, ls, show, check, bench, prune, fsck, recipes, modes, targets):
    app.command()(getattr(verb, verb.__name__.rpartition(".")[2]))
app.add_typer(trust, name="trust")


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
