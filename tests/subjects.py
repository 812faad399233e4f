"""The models that mutations are tried on, and a call of each that the session's artifacts serve: one of each family."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aot.building.plan import prepare
from aot.model.capture import recording
from aot.recipes import find
from aot.request.request import Request
from tests.conftest import ARTIFACTS, request_for

Subject = tuple[nn.Module, dict[str, Any]]


def _made(recipe: str, path: str) -> Callable[[], Subject]:
    def make() -> Subject:
        found = find(recipe)
        request: Request = request_for(recipe=recipe, **ARTIFACTS[recipe])
        pipeline, modules = prepare(found, request)
        with recording(modules, {name: [] for name in modules}) as calls, torch.no_grad():
            pipeline(**found.call(pipeline, request.examples(found)[0], found.min_steps, 0))
        call = next(call for call in calls if call.component == path)
        args, kwargs = call.signature.call(call.tensors)
        assert not args
        return modules[path].eval().requires_grad_(False), kwargs

    return make


SUBJECTS: dict[str, tuple[str, Callable[[], Subject]]] = {
    "unet": ("sd21", _made("sd21", "unet")),
    "transformer": ("pixart-alpha", _made("pixart-alpha", "transformer")),
    "video": ("latte", _made("latte", "transformer")),
    "decoder": ("pixart-alpha", _made("pixart-alpha", "vae.decoder")),
}
