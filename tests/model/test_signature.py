import json

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from aot.errors import Unsupported
from aot.model.convention import Convention
from aot.model.signature import Signature, TensorSpec, fill, flatten, form_from_json, form_to_json


def _signature(*args: object, **kwargs: object) -> Signature:
    return Signature.of(args, kwargs)[0]


A = torch.zeros(2, 3)

CALLS = [
    lambda: _signature(A),
    lambda: _signature(torch.zeros(3, 3)),
    lambda: _signature(torch.zeros(2, 3, 1)),
    lambda: _signature(torch.zeros(3, 2).T),
    lambda: _signature(torch.zeros(2, 3, dtype=torch.float64)),
    lambda: _signature(torch.zeros(2, 3, device="meta")),
    lambda: _signature(A[:1].expand(2, 3)),
    lambda: _signature(A, None),
    lambda: _signature(A, 1),
    lambda: _signature(A, 1.0),
    lambda: _signature(A, True),
    lambda: _signature(A, "1"),
    lambda: _signature((A,)),
    lambda: _signature([A]),
    lambda: _signature({"x": A}),
    lambda: _signature({"y": A}),
    lambda: _signature(x=A),
    lambda: _signature(A, torch.float32),
]


def test_whatever_can_change_a_graph_changes_the_signature() -> None:
    found = [make() for make in CALLS]
    assert len({signature.digest for signature in found}) == len(found)
    for first in found:
        assert first.differs(first) is None
        assert Signature.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_values_do_not_enter() -> None:
    assert _signature(torch.ones(2, 3)) == _signature(A)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: _signature(x=torch.zeros(1, 3)), "x.shape is (1, 3), built for (2, 3)"),
        (lambda: _signature(x=torch.zeros(2, 3).half()), "x.dtype is float16, built for float32"),
        (lambda: _signature(x=torch.zeros(3, 2).T), "x.stride is (1, 2), built for (3, 1)"),
        (lambda: _signature(x=torch.zeros(2, 3, device="meta")), "x.device is meta, built for cpu"),
        (lambda: _signature(x=A, scale=2), "scale is 2, built for absent"),
        (lambda: _signature(x=None), "x is None, built for a tensor"),
    ],
)
def test_a_difference_names_the_field(other: object, words: str) -> None:
    assert _signature(x=A).differs(other()) == words  # type: ignore[operator]


def test_fill_inverts_flatten() -> None:
    value = {"a": (A, [1, None, "x"]), "b": {"c": A + 1}, "d": torch.bfloat16}
    tensors: list[torch.Tensor] = []
    form = flatten(value, tensors)
    assert form_from_json(json.loads(json.dumps(form_to_json(form)))) == form
    again = fill(form, iter(tensors))
    assert again["a"][0] is A
    assert again["a"][1] == [1, None, "x"]
    assert again["d"] is torch.bfloat16


def test_output_classes_of_diffusers_come_back_as_they_were() -> None:
    tensors: list[torch.Tensor] = []
    form = flatten(Transformer2DModelOutput(sample=A), tensors)
    again = fill(form, iter(tensors))
    assert isinstance(again, Transformer2DModelOutput)
    assert again.sample is A


@pytest.mark.parametrize("name", ["os:environ", "aot.artifact.key:Key", "diffusers.models.modeling_outputs:torch"])
def test_no_other_class_is_made_from_a_name(name: str) -> None:
    with pytest.raises(Unsupported):
        fill(("dict", name), iter(()))


def test_what_has_no_identity_is_unsupported() -> None:
    for value in (object(), {1, 2}, {1: 2}, Signature):
        with pytest.raises(Unsupported):
            flatten(value, [])


@pytest.mark.parametrize("tensor", [torch.zeros(2, 3), torch.zeros(3, 2).T, A[:1].expand(2, 3), torch.zeros(()), torch.zeros(0, 3)])
def test_zeros_have_the_spec(tensor: torch.Tensor) -> None:
    assert TensorSpec.of(TensorSpec.of(tensor).zeros()) == TensorSpec.of(tensor)


def _forward(x: torch.Tensor, y: torch.Tensor, flag: bool = True) -> None: ...


def test_every_way_of_writing_a_call_is_one() -> None:
    convention, b = Convention(_forward), torch.ones(4)
    canonical = convention.canonical((A, b), {})
    for args, kwargs in (((A,), {"y": b}), ((), {"y": b, "x": A}), ((A, b, True), {}), ((), {"flag": True, "y": b, "x": A})):
        assert Signature.of(*convention.canonical(args, kwargs))[0] == Signature.of(*canonical)[0]
    assert convention.order((), {"y": b, "x": A}) == [1, 0]
    assert convention.order((A, A), {}) == [0, 1]


@pytest.mark.parametrize("size", [(0, 3), (2, 3), (1,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_a_blank_tensor_is_zeros(size: tuple[int, ...], dtype: torch.dtype) -> None:
    spec = TensorSpec.of(torch.zeros(size, dtype=dtype))
    assert torch.equal(spec.blank(), spec.zeros())
    assert TensorSpec.of(spec.blank()) == spec
