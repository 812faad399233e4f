"""What a call leaves in its arguments is a result of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aot.errors import Unsupported
from aot.model.signature import flatten
from aot.model.writes import SAME, write, written

A, B = torch.zeros(1), torch.ones(2)


def after(before: Any, now: Any) -> tuple[Any, list[torch.Tensor]]:
    tensors: list[torch.Tensor] = []
    form = flatten(before, tensors)
    found: list[torch.Tensor] = []
    return written(form, tensors, now, found), found


@pytest.mark.parametrize("value", [1, "Rep", None, A, [A, None, "x"], (A, [B]), {"a": A, "b": [1, 2]}])
def test_what_stayed_is_no_result(value: Any) -> None:
    assert after(value, value) == (SAME, [])


def test_a_tensor_that_is_another_object_is_a_result_though_it_is_equal() -> None:
    form, found = after([A, B], [A, B.clone()])
    assert form == ("list", SAME, ("tensor",))
    assert torch.equal(found[0], B)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([None, None], [A, None]),
        ([A, B], ["Rep", B]),
        ([0], [3]),
        ([A], [A, B]),
        ([A, B], [B]),
        ({"cache": [A], "place": [0]}, {"cache": [B], "place": [1]}),
        ((1, [A, (B, [None])]), (1, [B, (B, [A])])),
    ],
)
def test_a_write_does_to_other_lists_what_the_call_did(before: Any, now: Any) -> None:
    form, found = after(before, now)
    copies = [tensor.clone() for tensor in found]
    live = _copied(before)
    write(form, live, iter(copies))
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    assert flatten(live, ours) == flatten(now, theirs)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_the_caller_keeps_his_list() -> None:
    inner: list[Any] = [None]
    live = {"cache": inner}
    form, found = after({"cache": [None]}, {"cache": [A]})
    write(form, live, iter(found))
    assert live["cache"] is inner
    assert inner == [A]


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(Unsupported, match="object"):
        after([None], [object()])


def _copied(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return {name: _copied(item) for name, item in value.items()} if isinstance(value, dict) else value
