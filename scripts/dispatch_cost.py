"""What a loaded call costs beside its computation: everything the dispatcher does, and the hand-over to a library.

    python scripts/dispatch_cost.py --variant small         # builds the denoiser where the store lacks it

The denoiser's graph is replaced by a library that takes the same weights and computes next to nothing. Prints one JSON object:
microseconds a call, the least of many rounds (whatever else a machine does only adds), in all without and with the seal, and
by part; `library_check_us` is what the library's own comparison of its inputs would cost, which the dispatcher's replaces.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import aot
from aot.artifact.runner import Library
from aot.building.build import build
from aot.building.recorded import make_plan
from aot.cache_store.local import LocalStore
from aot.cache_store.root import default_root
from aot.compiler.inductor import Configuration, compile_graph
from aot.errors import Miss
from aot.model.signature import Signature
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request
from aot.serving.dispatch import Dispatcher, _identity
from aot.serving.surroundings import surroundings


class Next(nn.Module):
    """Takes the weights of a model and a tensor, and computes next to nothing.

    It reads one number of the first weight, or of each: a library compares only inputs that it reads, and reading 268 pages of
    memory is computation.
    """

    def __init__(self, model: nn.Module, *, reads_all: bool) -> None:
        super().__init__()
        self.model, self.reads_all = model, reads_all

    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor]:
        read = list(self.model.parameters()) if self.reads_all else [next(self.model.parameters())]
        return (value.reshape(-1)[:1] + sum(weight.reshape(-1)[0] for weight in read),)


class _Unbroken:
    """A seal that looks at nothing. Taking the seal's own time from the whole would leave in what its looking costs the rest: it
    reads a megabyte between two looks at the weights."""

    def holds(self) -> bool:
        return True


_UNBROKEN: Any = _Unbroken()


def least(functions: dict[str, Callable[[], object]], *, rounds: int = 60, calls: int = 100) -> dict[str, float]:
    """Microseconds a call of each, the least of the rounds' means; they take turns."""
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(calls):
                function()
            found[name] = min(found[name], (time.perf_counter() - started) / calls * 1e6)
    return found


def libraries(model: nn.Module, value: torch.Tensor, folder: Path, *, reads_all: bool) -> tuple[Library, Library]:
    """The library as it is served, and with its own comparison of its inputs."""
    path, checked = (folder / f"{name}{reads_all}.so" for name in ("next", "checking"))
    signature, tensors = Signature.of((value,), {})
    configuration = Configuration({}, frozen=False, device="cpu")
    compile_graph(Next(model, reads_all=reads_all), signature, tensors, dynamic=None, configuration=configuration, library=path)
    shutil.copy(path, checked)
    plain = Library(path, torch.device("cpu"), cudagraphs=False)
    with mock.patch.dict(os.environ, {"AOTI_RUNTIME_CHECK_INPUTS": "1"}):
        checking = Library(checked, torch.device("cpu"), cudagraphs=False)
    return plain, checking


def measure(dispatcher: Dispatcher, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path) -> dict[str, float]:
    """Of one kind of call, which the dispatcher has served before."""
    (known,) = dispatcher._known.values()
    weights = dispatcher._weights.tensors() or []
    value = next(tensor for tensor in kwargs.values() if isinstance(tensor, torch.Tensor))
    plain, _ = libraries(model, value, folder, reads_all=False)
    unchecked, checking = libraries(model, value, folder, reads_all=True)
    inputs = [*weights, value]
    for library in (plain, unchecked, checking):
        library.enter(inputs)
    known.graph.run_flat = lambda tensors: plain.run([*tensors[: len(weights)], value])
    dispatcher(*args, **kwargs)  # compiling in this process moved what is sealed of torch's modules
    forms, seal = dispatcher._forms[known.graph.device], dispatcher._seal
    assert seal is not None

    def unsealed() -> object:
        dispatcher._seal = _UNBROKEN
        try:
            return dispatcher(*args, **kwargs)
        finally:
            dispatcher._seal = seal

    def identity() -> object:
        tensors: list[torch.Tensor] = []
        return dispatcher._known.get((surroundings("cpu"), _identity(args, tensors), _identity(kwargs, tensors)))

    parts = least(
        {
            "whole": lambda: dispatcher(*args, **kwargs),
            "unsealed": unsealed,
            "seal": seal.holds,
            "identity": identity,
            "weights": dispatcher._weights.tensors,
            "forms": lambda: forms.refuses(weights),
            "hand_over": lambda: plain.run(inputs),
            "read_all": lambda: unchecked.run(inputs),
            "read_all_checking": lambda: checking.run(inputs),
        }
    )
    modules = sum(1 for _ in model.modules())
    return {
        "without_seal_us": parts["unsealed"],
        "with_seal_us": parts["whole"],
        **{f"{name}_us": parts[name] for name in ("identity", "weights", "forms", "hand_over", "seal")},
        "library_check_us": parts["read_all_checking"] - parts["read_all"],
        "seal_us_a_module": parts["seal"] / modules,
        "weights_count": len(weights),
        "modules": modules,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small")
    parser.add_argument("--recipe", default="pixart-alpha")
    given = parser.parse_args()
    os.environ.setdefault("NEXFORT_GRAPH_CACHE", "1")

    recipe = find(given.recipe)
    shapes = (recipe.variant(given.variant).shape,)
    request = Request(recipe.name, given.variant, shapes, gpu="cpu", options=Options(), cache_layer=False)
    plan = make_plan(recipe, request)
    name = next(name for name in ("transformer", "unet") if name in plan.modules)
    try:
        aot.compile(plan.modules[name], on_miss="error")
    except Miss:
        print("building what the store lacks", file=sys.stderr)
        store = LocalStore(default_root(os.environ))
        build(replace(request, components=(name,)), store, progress=lambda _: None, environ=os.environ)
        aot.compile(plan.modules[name], on_miss="error")
    call = next(call for call in plan.calls if call.component == name)
    args, kwargs = call.signature.call(call.tensors)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        plan.modules[name](*args, **kwargs)
        dispatcher = plan.modules[name].forward
        found = measure(dispatcher, plan.modules[name], args, kwargs, Path(folder))
    print(json.dumps({**{key: round(value, 2) for key, value in found.items()}, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
