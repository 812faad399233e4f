"""Configs of published models, as JSON files beside their sources."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def published(name: str) -> dict[str, Any]:
    """The config `configs/<name>.json`, without the keys that only say who wrote it; `configs/SOURCES.json` says where it is from."""
    from importlib.resources import files

    text = (files("recipes") / "configs" / f"{name}.json").read_text()
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def instantiate(kind: type[T], config: Mapping[str, Any]) -> T:
    """An object of `kind` from the keys of `config` that it takes: some were written for the class before it was split."""
    known = inspect.signature(kind).parameters
    return kind(**{key: value for key, value in config.items() if key in known})
