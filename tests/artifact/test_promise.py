"""Which calls a graph along axes serves, and which it refuses, by name."""

import re
from dataclasses import replace

import pytest
import torch

from aot.artifact.promise import Pattern, Promise
from aot.errors import Unsupported
from aot.model.axes import Axes, alike
from aot.model.formula import Formula
from aot.model.signature import Signature


def _call(height: int, width: int, tokens: int, **more: object) -> Signature:
    """Latents and a prompt, and a mask over both."""
    given = {
        "latents": torch.empty(1, 4, height, width),
        "prompt": torch.empty(1, tokens, 8),
        "mask": torch.empty(1, height * width + tokens),
    }
    return Signature.of((), {**given, **more})[0]


def _promise() -> Promise:
    h, w, t, all_ = Formula("h"), Formula("w"), Formula("t"), Formula("h*w + t")
    patterns = (
        Pattern((1, 4, h, w), (Formula("4*h*w"), Formula("h*w"), w, 1), "float32", "cpu"),
        Pattern((1, t, 8), (Formula("8*t"), 8, 1), "float32", "cpu"),
        Pattern((1, all_), (all_, 1), "float32", "cpu"),
    )
    return Promise(_call(6, 8, 5).form, patterns, (("h", 4, 8), ("t", 3, 9), ("w", 4, 12)), (Formula("Eq(Mod(w, 2), 0)"),))


@pytest.mark.parametrize("size", [(4, 4, 3), (8, 12, 9), (5, 6, 7)])
def test_calls_within_are_served(size: tuple[int, int, int]) -> None:
    assert _promise().refuses(_call(*size)) is None
    assert _promise().taken(_call(*size)) == _call(*size)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (_call(3, 4, 5), r"latents.shape\[2\] is 3, built for 4 to 8"),
        (_call(8, 14, 5), r"latents.shape\[3\] is 14, built for 4 to 12"),
        (_call(8, 12, 10), r"prompt.shape\[1\] is 10, built for 3 to 9"),
        (_call(8, 5, 5), r"h=8, t=5, w=5\) break Eq\(Mod\(w, 2\), 0\)"),
        (_call(8, 4, 5, mask=torch.empty(1, 30)), r"mask.shape is \(1, 30\), built for \(1, 37\)"),
        (_call(8, 4, 5, latents=torch.empty(2, 4, 8, 4)), r"latents.shape is \(2, 4, 8, 4\)"),
        (_call(8, 4, 5, latents=torch.empty(1, 4, 4, 8).transpose(2, 3)), "latents.stride"),
        (_call(8, 4, 5, latents=torch.empty(1, 4, 8, 4).half()), "latents.dtype"),
        (_call(8, 4, 5, latents=torch.empty(4, 8, 4)), "ranks"),
        (_call(8, 4, 5, scale=1.0), "scale is 1.0, built for absent"),
    ],
)
def test_all_others_are_refused_by_name(call: Signature, reason: str) -> None:
    assert re.search(reason, str(_promise().refuses(call)))


def test_strides_that_lead_nowhere_are_no_matter() -> None:
    latents = torch.empty(1, 4, 8, 4).as_strided((1, 4, 8, 4), (999, 32, 4, 1))
    call = _call(8, 4, 5, latents=latents)
    assert _promise().refuses(call) is None
    taken = _promise().taken(call).specs[0]
    assert taken.stride == (128, 32, 4, 1)
    assert taken.lay_out(latents).data_ptr() == latents.data_ptr()


def test_its_ends_are_calls_that_it_serves() -> None:
    ends = list(_promise().ends())
    assert {_call(4, 4, 3), _call(8, 12, 9)} <= set(ends)
    assert all(_promise().refuses(end) is None for end in ends)


def test_it_comes_back_from_json_and_what_could_not_be_checked_does_not() -> None:
    assert Promise.from_json(_promise().to_json()) == _promise()
    with pytest.raises(Unsupported, match="u0 is the size of nothing"):
        replace(_promise(), conditions=(Formula("u0 > 3"),)).check()
    with pytest.raises(Unsupported, match="no formula"):
        Promise.from_json({**_promise().to_json(), "conditions": ["__import__('os')"]})


def test_calls_are_alike_where_only_sizes_above_one_differ() -> None:
    one, other, single, turned = _call(6, 8, 5), _call(4, 8, 7), _call(1, 8, 5), _call(6, 8, 5, latents=torch.empty(1, 4, 8, 6).mT)
    assert alike([one, single, other, turned]) == [(one, other), (single,), (turned,)]
    axes = Axes((one, other))
    assert axes.varying() == [{2: (4, 6)}, {1: (5, 7)}, {1: (39, 53)}]
    assert axes.traced in (one, other)
    assert str(axes) == "float32[1,4,*,8] float32[1,*,8] float32[1,*]"
    assert axes.digest == Axes((other, one)).digest != Axes((one, _call(4, 8, 6))).digest


def test_a_call_that_a_formula_divides_by_nothing_is_refused_and_does_not_raise() -> None:
    promise = Promise(
        Signature.of((torch.empty(4, 2), torch.empty(2)), {})[0].form,
        (Pattern((Formula("a"), Formula("b")), (Formula("b"), 1), "float32", "cpu"), Pattern((Formula("a//b"),), (1,), "float32", "cpu")),
        (("a", 2, 8), ("b", 0, 4)),
    )
    assert promise.refuses(Signature.of((torch.empty(4, 2), torch.empty(2)), {})[0]) is None
    assert "divide by nothing" in str(promise.refuses(Signature.of((torch.empty(4, 0), torch.empty(2)), {})[0]))
    assert list(promise.ends())


def test_tensors_that_lie_otherwise_are_taken_by_way_of_copies_and_beyond_the_promise_not_at_all() -> None:
    last = _call(8, 4, 5, latents=torch.empty(1, 4, 8, 4).to(memory_format=torch.channels_last))
    assert "latents.stride" in (_promise().refuses(last) or "")
    assert _promise().taken(last) == _call(8, 4, 5)
    odd = _call(8, 5, 5, latents=torch.empty(1, 4, 8, 5).to(memory_format=torch.channels_last))
    assert _promise().taken(odd) is None
    assert _promise().taken(_call(8, 14, 5)) is None
    assert _promise().taken(_call(8, 4, 5, latents=torch.empty(1, 4, 8, 4).half())) is None
