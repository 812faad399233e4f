"""`aot modes`."""

from __future__ import annotations

from typing import Any

from aot.cli.request import Json
from aot.cli.text import print_json, print_records
from aot.request.mode import COMBINATIONS, WORDS, Mode


def modes(json: Json = False) -> None:
    """List the mode words: what each does, sets and costs, and which devices can have it in an artifact."""
    if json:
        print_json([_row(name) for name in (*COMBINATIONS, *WORDS)])
        return
    print_records(
        ("mode", "does", "sets in Inductor", "sets in the process", "costs", "device"),
        [
            (row["mode"], row["does"], _settings(row["inductor"]), _settings(row["process"]), row["costs"], row["device"])
            for row in map(_row, (*COMBINATIONS, *WORDS))
        ],
    )


def _row(name: str) -> dict[str, Any]:
    mode, word = Mode.parse(name), WORDS.get(name)
    return {
        "mode": name,
        "does": word.does if word else f"stands for {mode}",
        "inductor": mode.inductor,
        "process": mode.process,
        "costs": word.costs if word else "those of its words",
        "device": (word and word.device) or "any",
    }


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "-"
