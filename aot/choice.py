"""Choice: a word out of a known list, or an error that names the nearest."""

import difflib
from collections.abc import Iterable

from aot.errors import BadInput


def choice(text: str, *, known: Iterable[str], field: str) -> str:
    """`text`, if it is known; else BadInput naming the field, the nearest known word and all of them."""
    words = list(known)
    if text in words:
        return text
    close = difflib.get_close_matches(text, words, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"{field} {text!r} is unknown.{hint}", remedy=f"known are: {', '.join(words)}.")
