"""Writes: what a call leaves in the lists and dicts that it was given, as further results. A graph computes, and writes to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch

from aot.model.signature import Form, fill, flatten

SAME: Form = ("same",)


def written(form: Form, tensors: list[torch.Tensor], value: Any, found: list[torch.Tensor]) -> Form:
    """What of `value`, which was of this form with these tensors before a call, is another after it: SAME, or a form with SAME
    in the place of what stayed.

    The new tensors are appended to `found` in order. Raises Unsupported for a value that has no form.
    """
    return _written(form, iter(tensors), value, found)


def _written(form: Form, before: Iterator[torch.Tensor], value: Any, found: list[torch.Tensor]) -> Form:
    match form:
        case ("tensor",):
            return SAME if next(before) is value else flatten(value, found)
        case ("list" | "tuple" as kind, *items) if type(value).__name__ == kind:
            after = [_written(item, before, new, found) for item, new in zip(items, value, strict=False)]
            after += [_gone(item, before) for item in items[len(value) :]] + [flatten(new, found) for new in value[len(items) :]]
            kept = after[: len(value)] if len(items) > len(value) else after
            return SAME if len(items) == len(value) and all(item == SAME for item in after) else (kind, *kept)
        case ("dict", name, *items) if isinstance(value, dict) and list(value) == [key for key, _ in items]:
            pairs = [(key, _written(item, before, value[key], found)) for key, item in items]
            return SAME if all(item == SAME for _, item in pairs) else ("dict", name, *pairs)
        case _:
            _gone(form, before)
            now = flatten(value, found)
            return SAME if now == form and not _tensors_in(form) else now


def _gone(form: Form, before: Iterator[torch.Tensor]) -> Form:
    """Pass over the tensors of a part that is there no longer."""
    for _ in range(_tensors_in(form)):
        next(before)
    return SAME


def _tensors_in(form: Form) -> int:
    return int(form == ("tensor",)) + sum(_tensors_in(part) for part in form if isinstance(part, tuple))


@dataclass(frozen=True, slots=True)
class Results:
    """All that a call comes to, as tensors: those of what it returned, of that form, then those of what it wrote."""

    returned: Form
    writes: Form
    tensors: list[torch.Tensor]

    @classmethod
    def of(cls, returned: Any, call: tuple[Any, Any], form: Form, tensors: list[torch.Tensor]) -> Self:
        """Those of a `call` that is over, whose arguments were of this form with these tensors before it. Raises Unsupported."""
        found: list[torch.Tensor] = []
        return cls(flatten(returned, found), written(form, tensors, call, found), found)


def give_back(returned: Form, writes: Form, tensors: Iterable[torch.Tensor], call: Any) -> Any:
    """What a call with such results returns; what it writes is written into `call`, its canonical arguments."""
    found = iter(tensors)
    value = fill(returned, found)
    write(writes, call, found)
    return value


def write(form: Form, value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Do to `value` what a call did that left `form` in its place: lists and dicts are changed in place. Returns the new value."""
    match form:
        case ("same",):
            return value
        case ("list", *items) if isinstance(value, list):
            value[:] = _items(items, value, tensors)
            return value
        case ("tuple", *items) if isinstance(value, tuple):
            return tuple(_items(items, value, tensors))
        case ("dict", _, *items) if isinstance(value, dict):
            for key, item in items:
                value[key] = write(item, value.get(key), tensors)
            return value
        case _:
            return fill(form, tensors)


def _items(forms: list[Form], values: Any, tensors: Iterator[torch.Tensor]) -> list[Any]:
    return [write(form, values[place] if place < len(values) else None, tensors) for place, form in enumerate(forms)]
