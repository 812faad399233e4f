"""What may be done to a model: a table of mutations, each applied to a model that is served and to one that is eager."""

import copy
import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Call = dict[str, Any]


@dataclass(frozen=True)
class Mutation:
    """`apply(module, stack)` changes a model; what it does to classes and torch is undone with the stack. `around` is entered
    around the call, `call` changes its arguments."""

    family: str
    apply: Callable[[nn.Module, ExitStack], object] = lambda module, stack: None
    around: Callable[[nn.Module], Any] = lambda module: nullcontext()
    call: Callable[[Call], Call] = lambda call: call


TABLE: dict[str, Mutation] = {}


def _row(family: str) -> Callable[[Callable[[nn.Module, ExitStack], object]], Callable[[nn.Module, ExitStack], object]]:
    def add(apply: Callable[[nn.Module, ExitStack], object]) -> Callable[[nn.Module, ExitStack], object]:
        TABLE[apply.__name__.strip("_").replace("_", " ")] = Mutation(family, apply)
        return apply

    return add


def _all(module: nn.Module, *kinds: type) -> list[Any]:
    return [child for child in module.modules() if isinstance(child, kinds) and child is not module]


def _linear(module: nn.Module) -> Any:
    """A layer in the middle: in a block, where blocks are what is served."""
    layers = [child for child in _all(module, nn.Linear, nn.Conv2d) if child.bias is not None]
    return layers[len(layers) // 2]


def _norm(module: nn.Module) -> Any:
    norms = _all(module, nn.LayerNorm, nn.GroupNorm)
    return norms[len(norms) // 2]


def _processor(module: nn.Module) -> Any:
    return next(child for child in module.modules() if hasattr(child, "processor")).processor


def _list(module: nn.Module) -> Any:
    return next((child for child in _all(module, nn.ModuleList) if len(child) > 1), None) or _all(module, nn.ModuleList)[0]


# attributes


@_row("attribute")
def _epsilon(module: nn.Module, _: ExitStack) -> None:
    _norm(module).eps = 0.5


@_row("attribute")
def _circular_convolutions(module: nn.Module, _: ExitStack) -> None:
    for convolution in _all(module, nn.Conv2d):
        convolution.padding_mode = "circular"


@_row("attribute")
def _training_with_dropout(module: nn.Module, _: ExitStack) -> None:
    for dropout in _all(module, nn.Dropout):
        dropout.p = 0.3
    module.train()


@_row("attribute")
def _a_registered_config(module: Any, _: ExitStack) -> None:
    if hasattr(module, "register_to_config"):
        module.register_to_config(sample_size=77)


@_row("attribute")
def _a_new_attribute(module: nn.Module, _: ExitStack) -> None:
    _linear(module).scale = 2.0


@_row("attribute")
def _a_list_changed_in_place(module: Any, _: ExitStack) -> None:
    if hasattr(module, "config"):
        dict.__setitem__(module.config, "in_channels", 99)


@_row("attribute")
def _another_class(module: nn.Module, _: ExitStack) -> None:
    class Doubled(type(_linear(module))):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return super().forward(*args) * 2

    _linear(module).__class__ = Doubled


@_row("attribute")
def _a_processors_attribute(module: nn.Module, _: ExitStack) -> None:
    _processor(module).scale = 0.1


@_row("attribute")
def _a_tensor_kept_as_attribute(module: nn.Module, _: ExitStack) -> None:
    _linear(module).extra = torch.ones(3)


@_row("attribute")
def _an_object_that_nobody_can_describe(module: nn.Module, _: ExitStack) -> None:
    _linear(module).secret = iter(())


@_row("attribute")
def _another_processor(module: Any, _: ExitStack) -> None:
    class Halved(type(_processor(module))):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 0.5

    owner = next(child for child in module.modules() if hasattr(child, "processor"))
    owner.processor = Halved.__new__(Halved)
    owner.processor.__dict__.update(vars(_processor(module)))


# hooks


def _double(*given: Any) -> Any:
    return given[-1] * 2


def _look(*_: Any) -> None:
    LOOKED.append(1)


LOOKED: list[int] = []


@_row("hook")
def _a_hook(module: nn.Module, _: ExitStack) -> None:
    _linear(module).register_forward_hook(_double)


@_row("hook")
def _a_hook_that_only_looks(module: nn.Module, _: ExitStack) -> None:
    _linear(module).register_forward_hook(_look)


@_row("hook")
def _a_hook_before(module: nn.Module, _: ExitStack) -> None:
    _linear(module).register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))


@_row("hook")
def _a_hook_with_keywords(module: nn.Module, _: ExitStack) -> None:
    _linear(module).register_forward_hook(lambda module, args, kwargs, out: out * 2, with_kwargs=True)


@_row("hook")
def _a_global_hook(module: nn.Module, stack: ExitStack) -> None:
    def doubles(child: nn.Module, _: Any, out: Any) -> Any:
        return out * 2 if isinstance(child, nn.LayerNorm | nn.GroupNorm) else None

    stack.callback(torch.nn.modules.module.register_module_forward_hook(doubles).remove)


@_row("hook")
def _a_hook_of_the_root(module: nn.Module, _: ExitStack) -> None:
    module.register_forward_hook(lambda _, __, out: (out[0] * 2,) if isinstance(out, tuple) else out * 2)


@_row("hook")
def _accelerates_hook(module: nn.Module, _: ExitStack) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Doubles(ModelHook):  # type: ignore[misc]
        def post_forward(self, _: Any, output: Any) -> Any:
            return output * 2

    add_hook_to_module(_linear(module), Doubles())


@_row("hook")
def _diffusers_hook(module: nn.Module, _: ExitStack) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    class Doubles(ModelHook):  # type: ignore[misc]
        def post_forward(self, _: Any, output: Any) -> Any:
            return output * 2

    HookRegistry.check_if_exists_or_initialize(_linear(module)).register_hook(Doubles(), "doubles")


# code


@_row("code")
def _a_lambda_as_forward(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    plain = layer.forward
    layer.forward = lambda *args: plain(*args) * 2


@_row("code")
def _a_partial_as_forward(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.forward = functools.partial(lambda plain, *args: plain(*args) * 2, layer.forward)


@_row("code")
def _a_method_as_forward(module: nn.Module, _: ExitStack) -> None:
    def doubled(self: Any, *args: Any) -> Any:
        return type(self).forward(self, *args) * 2

    layer = _linear(module)
    layer.forward = types.MethodType(doubled, layer)


@_row("code")
def _a_convolutions_inner_forward(module: nn.Module, _: ExitStack) -> None:
    for convolution in _all(module, nn.Conv2d)[:1]:
        convolution._conv_forward = functools.partial(_scaled, convolution._conv_forward)


def _scaled(plain: Callable[..., Any], *args: Any) -> Any:
    return plain(*args) * 2


def _patched(stack: ExitStack, owner: Any, name: str, factor: float = 2) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) * factor

    stack.enter_context(mock.patch.object(owner, name, scaled))


@_row("code")
def _the_forward_of_a_class(module: nn.Module, stack: ExitStack) -> None:
    _patched(stack, type(_norm(module)), "forward")


@_row("code")
def _the_forward_of_linear(module: nn.Module, stack: ExitStack) -> None:
    _patched(stack, nn.Linear, "forward")


@_row("code")
def _a_processors_call(module: nn.Module, stack: ExitStack) -> None:
    _patched(stack, type(_processor(module)), "__call__", 0.5)


@_row("code")
def _attention_itself(module: nn.Module, stack: ExitStack) -> None:
    _patched(stack, functional, "scaled_dot_product_attention", 0.5)


@_row("code")
def _a_function_of_torch(module: nn.Module, stack: ExitStack) -> None:
    for name in ("silu", "gelu", "layer_norm", "group_norm"):
        _patched(stack, functional, name)


@_row("code")
def _the_call_of_every_module(module: nn.Module, stack: ExitStack) -> None:
    plain = nn.Module.__call__

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        return out * 2 if isinstance(self, nn.LayerNorm | nn.GroupNorm) else out

    stack.enter_context(mock.patch.object(nn.Module, "__call__", doubled))


@_row("code")
def _the_code_of_a_function(module: nn.Module, stack: ExitStack) -> None:
    def forward(self: Any, input: Any) -> Any:
        return input * 0.5

    plain = type(_norm(module)).forward
    stack.callback(setattr, plain, "__code__", plain.__code__)
    plain.__code__ = forward.__code__


@_row("code")
def _the_roots_forward_wrapped(module: nn.Module, _: ExitStack) -> None:
    plain = module.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        return (out[0] * 2,) if isinstance(out, tuple) else out * 2

    module.forward = functools.wraps(plain)(doubled)  # type: ignore[assignment]


@_row("code")
def _the_forward_of_the_roots_class(module: nn.Module, stack: ExitStack) -> None:
    plain = type(module).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        return (out[0] * 2,) if isinstance(out, tuple) else out * 2

    stack.enter_context(mock.patch.object(type(module), "forward", functools.wraps(plain)(doubled)))


@_row("code")
def _a_call_before_that_of_the_base(module: nn.Module, stack: ExitStack) -> None:
    stack.enter_context(mock.patch.object(nn.Dropout, "__call__", lambda self, x: x * 0.9, create=True))


@_row("code")
def _a_function_of_the_models_module(module: Any, stack: ExitStack) -> None:
    """What its forward calls by a bare name."""
    space = vars(sys.modules[type(module).__module__])
    for name in type(module).forward.__code__.co_names:
        if isinstance(space.get(name), types.FunctionType):
            _patched(stack, sys.modules[type(module).__module__], name)


@_row("code")
def _the_attribute_of_a_class(module: nn.Module, stack: ExitStack) -> None:
    stack.enter_context(mock.patch.object(type(_norm(module)), "eps", 0.5, create=True))


# the tree


@_row("tree")
def _a_block_twice(module: nn.Module, _: ExitStack) -> None:
    blocks = _list(module)
    blocks.append(blocks[-1])


@_row("tree")
def _blocks_in_another_order(module: nn.Module, _: ExitStack) -> None:
    blocks = _list(module)
    blocks._modules = dict(reversed(blocks._modules.items()))


@_row("tree")
def _order_changed_in_place(module: nn.Module, _: ExitStack) -> None:
    children = _list(module)._modules
    first = next(iter(children))
    children[first] = children.pop(first)


@_row("tree")
def _a_layer_replaced(module: nn.Module, _: ExitStack) -> None:
    for child in module.modules():
        for name, inner in child._modules.items():
            if isinstance(inner, nn.Linear | nn.Conv2d) and inner.bias is not None:
                child._modules[name] = nn.Sequential(inner, nn.Tanh())
                return


@_row("tree")
def _a_layer_of_its_own_equal_in_form(module: nn.Module, _: ExitStack) -> None:
    for child in module.modules():
        for name, inner in child._modules.items():
            if isinstance(inner, nn.LayerNorm | nn.GroupNorm):
                child._modules[name] = twin = copy.deepcopy(inner)
                for weight in twin.parameters():
                    weight.data.mul_(3)
                return


# weights


@_row("weight")
def _weights_changed_in_place(module: nn.Module, _: ExitStack) -> None:
    with torch.no_grad():
        _linear(module).weight.mul_(1.5)


@_row("weight")
def _a_weight_replaced(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.weight = nn.Parameter(layer.weight.detach() * 1.5, requires_grad=False)


@_row("weight")
def _a_weight_given_other_data(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.weight.data = layer.weight.data * 1.5


@_row("weight")
def _a_weight_laid_out_otherwise(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    weight = layer.weight.data * 1.5
    layer.weight.data = weight.transpose(0, 1).contiguous().transpose(0, 1)


@_row("weight")
def _a_bias_taken_away(module: nn.Module, _: ExitStack) -> None:
    _linear(module).bias = None


@_row("weight")
def _weights_tied(module: nn.Module, _: ExitStack) -> None:
    layers = _all(module, nn.Linear)
    one = next(layer for layer in layers if sum(other.weight.shape == layer.weight.shape for other in layers) > 1)
    other = next(layer for layer in layers if layer is not one and layer.weight.shape == one.weight.shape)
    other.weight = one.weight


@_row("weight")
def _a_weight_expanded(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.bias.data = layer.bias.data[:1].expand(layer.bias.shape)


@_row("weight")
def _a_negative_weight(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.bias = nn.Parameter(torch._neg_view(layer.bias.detach().clone()), requires_grad=False)


class _Loud(torch.Tensor):
    """Layers that hold it are twice as loud."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return out * 2 if func in (functional.linear, torch.conv2d, functional.conv2d) else out


class _Wrapped(torch.Tensor):
    """A wrapper, as quantised weights are: half of what it holds."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        plain = torch.utils._pytree.tree_map_only(cls, lambda found: found.inner * 0.5, args)
        return func(*plain, **(kwargs or {}))


@_row("weight")
def _a_weight_of_another_class(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight.as_subclass(_Loud))


@_row("weight")
def _a_weight_that_is_a_plain_attribute(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight.as_subclass(_Loud)


@_row("weight")
def _a_wrapped_weight(module: nn.Module, _: ExitStack) -> None:
    layer = _linear(module)
    layer.weight = nn.Parameter(_Wrapped(layer.weight.detach()), requires_grad=False)


@_row("weight")
def _one_more_weight(module: nn.Module, _: ExitStack) -> None:
    _norm(module).register_buffer("extra", torch.zeros(2))


# around the call


class _Doubles(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func in (functional.layer_norm, functional.group_norm, torch.layer_norm, torch.group_norm) else out


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 0.5 if func in (torch.ops.aten.addmm.default, torch.ops.aten.convolution.default) else out


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _tensors(call: Call, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    """The call with its first floating tensor changed."""
    changed = dict(call)
    name = next(name for name, value in call.items() if isinstance(value, torch.Tensor) and value.is_floating_point())
    changed[name] = change(call[name])
    return changed


class _Plain(torch.Tensor):
    pass


def _gradients(module: nn.Module) -> Any:
    """A gradient is asked for: a graph would give none."""
    module.requires_grad_(True)
    return torch.enable_grad()


TABLE |= {
    "a function mode": Mutation("mode", around=lambda _: _Doubles()),
    "a dispatch mode": Mutation("mode", around=lambda _: _Operators()),
    "a default device": Mutation("mode", around=lambda _: torch.device("cpu")),
    "another default dtype": Mutation("mode", around=lambda _: _default_dtype()),
    "autocast": Mutation("mode", around=lambda _: torch.autocast("cpu", dtype=torch.bfloat16)),
    "a forward-mode level": Mutation("mode", around=lambda _: torch.autograd.forward_ad.dual_level()),
    "a gradient": Mutation("mode", around=_gradients),
    "a negative input": Mutation("input", call=lambda call: _tensors(call, torch._neg_view)),
    "an input of another class": Mutation("input", call=lambda call: _tensors(call, lambda found: found.as_subclass(_Plain))),
    "a parameter as input": Mutation("input", call=lambda call: _tensors(call, lambda found: nn.Parameter(found, requires_grad=False))),
    "a sparse input": Mutation("input", call=lambda call: _tensors(call, lambda found: found.to_sparse())),
    "a nested input": Mutation("input", call=lambda call: _tensors(call, lambda found: torch.nested.nested_tensor(list(found)))),
    "an input in double": Mutation("input", call=lambda call: _tensors(call, torch.Tensor.double)),
    "an input laid out otherwise": Mutation(
        "input", call=lambda call: _tensors(call, lambda found: found.transpose(-1, -2).contiguous().transpose(-1, -2))
    ),
    "an expanded input": Mutation("input", call=lambda call: _tensors(call, lambda found: found[:1].expand(found.shape))),
    "nothing": Mutation("none"),
}
