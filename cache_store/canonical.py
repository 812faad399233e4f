"""Canonical JSON: one byte form a value, and a decoder that refuses everything else."""

import json
from typing import Any

from aot.cache_store.errors import Malformed

MAX_DEPTH = 16


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`: sorted keys, no spaces, ASCII, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def decode(raw: bytes, *, what: str) -> Any:
    """The value whose canonical bytes are `raw`.

    Raises Malformed, naming `what`, on duplicate keys, NaN, more than MAX_DEPTH levels, anything that is not
    JSON, and any other spelling of the same value: two spellings would give one value two digests.
    """
    value, spelled = _parse(raw, what)
    if spelled != raw:
        raise Malformed(f"{what} is not in canonical form (sorted keys, no spaces, ASCII).")
    return value


def decode_loosely(raw: bytes, *, what: str) -> Any:
    """As `decode`, with the spaces and order that a person may have written."""
    return _parse(raw, what)[0]


def encode_for_people(value: Any) -> bytes:
    """JSON of one value a line, for files that people read, compare and keep in version control."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def _parse(raw: bytes, what: str) -> tuple[Any, bytes]:
    """The value, and its canonical bytes."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_depth(value)
        return value, encode(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not canonical JSON: {error}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [child for node in level if isinstance(node, dict | list) for child in (node.values() if isinstance(node, dict) else node)]
