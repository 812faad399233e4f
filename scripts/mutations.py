"""What is done to a model, before it is loaded and after, and what it answers then: the whole table, on models of each family.

    python scripts/mutations.py                          # builds the tiny models it needs, some minutes each
    python scripts/mutations.py --models unet --scopes regional --rows "a hook" "epsilon"
    python scripts/mutations.py --models flux z-image wan --json scripts/results/mutations-today.json

Every cell compares a served model with an eager one that the same was done to. Prints counts by verdict and every cell that
is neither served exactly nor a miss; writes all cells, with the sentences of the misses, to scripts/results/mutations.json.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from aot.cache_store.local import LocalStore
from tests.mutations import TABLE
from tests.serving.test_mutations import Subject, answer, verdict
from tests.shared import compile_quickly
from tests.subjects import SUBJECTS

SCOPES = ("whole", "regional")
RESULTS = Path(__file__).with_name("results") / "mutations.json"


def cells(name: str, scope: str, subject: Subject, rows: list[str]) -> Iterator[dict[str, Any]]:
    """One model under one scope: each mutation, before and after loading."""
    model, call = subject
    for what in rows:
        for when in ("before", "after"):
            cell = {"model": name, "scope": scope, "mutation": what, "family": TABLE[what].family, "when": when}
            try:
                expected = answer(model, call, TABLE[what], when=when, loaded=False)
            except (StopIteration, IndexError):
                yield {**cell, "verdict": "no such part"}
                continue
            got = answer(model, call, TABLE[what], when=when, loaded=True)
            yield {**cell, "verdict": verdict(expected, got), "misses": list(got.misses)}


def run(name: str, scope: str, rows: list[str]) -> list[dict[str, Any]]:
    """Build the artifact of one model under one scope, and every cell of it."""
    with tempfile.TemporaryDirectory() as home:
        SUBJECTS[name].build(LocalStore(Path(home)), scope)
        os.environ["NEXFORT_GRAPH_CACHE"] = home
        found = list(cells(name, scope, SUBJECTS[name](), rows))
    for cell in found:
        if cell["verdict"].startswith(("WRONG", "RAISED")):
            print(json.dumps(cell), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--scopes", nargs="+", default=list(SCOPES), choices=SCOPES)
    parser.add_argument("--rows", nargs="+", default=list(TABLE), choices=list(TABLE))
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.getLogger("aot").setLevel(logging.ERROR)
    compile_quickly(os.environ)
    found: list[dict[str, Any]] = []
    for name, scope in product(given.models, given.scopes):
        if (name, scope) == ("decoder", "regional"):
            continue  # its blocks do not repeat
        found += run(name, scope, given.rows)
        command = " ".join(["python", *sys.argv])
        given.json.write_text(json.dumps({"torch": torch.__version__, "command": command, "cells": found}, indent=1) + "\n")
        counts = Counter(cell["verdict"].split()[0] for cell in found if (cell["model"], cell["scope"]) == (name, scope))
        print(name, scope, dict(counts), flush=True)
    print("all", dict(Counter(cell["verdict"].split()[0] for cell in found)))


if __name__ == "__main__":
    main()
