"""The options that the verbs of stores share."""

from __future__ import annotations

import sys
from typing import Annotated, TypeAlias

import typer

LOCATION = "Store: hf://ORG/REPO[@REVISION], s3://…, any fsspec URL, or a path."
Location: TypeAlias = Annotated[str, typer.Argument(help=LOCATION, metavar="STORE")]
From: TypeAlias = Annotated[str, typer.Option("--from", help=LOCATION, metavar="STORE")]
Gpu: TypeAlias = Annotated[str, typer.Option(help="auto: this machine; or another, by its name in `aot targets`.")]
ModeWords: TypeAlias = Annotated[str, typer.Option(help="Only artifacts of this mode.", metavar="WORDS")]
Variant: TypeAlias = Annotated[str, typer.Option(help="Only this row of the recipe: full, small or tiny.")]
OtherSku: TypeAlias = Annotated[
    bool, typer.Option("--allow-other-sku", help="Also another SKU's of the same architecture: it may be slower.")
]
OtherTorch: TypeAlias = Annotated[
    bool, typer.Option("--allow-other-torch", help="Also another torch's, if a process of its own reproduces its golden outputs.")
]
Every: TypeAlias = Annotated[bool, typer.Option("--all", help="Every artifact that would be loaded there, not the best alone.")]


def allow(other_sku: bool, other_torch: bool) -> list[str]:
    """The differences between machines whose option was given."""
    return [word for word, given in (("other-sku", other_sku), ("other-torch", other_torch)) if given]


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
