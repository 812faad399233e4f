"""Configs of published models, as JSON files beside their sources."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# The VAE of every `small` and `tiny` row. 32 channels in 32 groups: with 64, Inductor's group norm over two channels at a
# time is many times slower than anything around it, and a bench would measure that.
SMALL_VAE: Mapping[str, Any] = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}


def published(name: str) -> dict[str, Any]:
    """The config `configs/<name>.json`, without the keys that only say who wrote it; `configs/SOURCES.json` says where it is from."""
    from importlib.resources import files

    text = (files("aot.recipes") / "configs" / f"{name}.json").read_text()
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def instantiate(kind: type[T], name: str, overrides: Mapping[str, Any] | None = None) -> T:
    """A model or scheduler of the published config `name`, a row's `overrides` over it; keys that its class has not are left out.

    Some configs were written for a class before it was split.
    """
    known = inspect.signature(kind).parameters
    config = {**published(name), **(overrides or {})}
    return kind(**{key: value for key, value in config.items() if key in known})
