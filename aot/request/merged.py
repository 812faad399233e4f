"""Merged: the Records of one pipeline from several processes, as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aot.cache_store.canonical import encode


def merged(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of saved Records, one for each pipeline: the same name, models and attention backend. Their calls together, counts added up."""
    found: dict[bytes, dict[str, Any]] = {}
    for value in values:
        identity = encode([*(value[field] for field in ("name", "roots", "versions")), value.get("attention")])
        there = found.setdefault(identity, {**value, "calls": [], "components": {}, "left": {}})
        there["components"] |= value["components"]
        there["left"] |= value["left"]
        calls = {_identity(call): call for call in there["calls"]}
        for call in value["calls"]:
            known = calls.setdefault(_identity(call), {**call, "count": 0, "blocks": [], "written": []})
            known["count"] += call["count"]
            for each in ("blocks", "written"):
                known[each] += [one for one in call.get(each, ()) if one not in known[each]]
        there["calls"] = list(calls.values())
    return list(found.values())


def _identity(call: dict[str, Any]) -> bytes:
    return encode([call[field] for field in ("component", "signature", "dtype")])
