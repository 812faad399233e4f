"""The models that mutations are tried on, and a call of each that the session's artifacts serve: one of each family."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aot.building.plan import prepare
from aot.model.capture import recording
from aot.recipes import find
from aot.request.request import Request
from tests.conftest import ARTIFACTS, request_for

Subject = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Made:
    """Makes a recipe's tiny pipeline and asks it how it calls the component at `path`."""

    recipe: str
    path: str

    def __call__(self) -> Subject:
        found = find(self.recipe)
        request: Request = request_for(recipe=self.recipe, **ARTIFACTS[self.recipe])
        pipeline, modules = prepare(found, request)
        with recording(modules, {name: [] for name in modules}) as calls, torch.no_grad():
            pipeline(**found.call(pipeline, request.examples(found)[0], found.min_steps, 0))
        call = next(call for call in calls if call.component == self.path)
        args, kwargs = call.signature.call(call.tensors)
        assert not args
        return modules[self.path].eval().requires_grad_(False), kwargs


SUBJECTS: dict[str, tuple[str, Made]] = {
    name: (made.recipe, made)
    for name, made in {
        "unet": Made("sd21", "unet"),
        "transformer": Made("pixart-alpha", "transformer"),
        "video": Made("latte", "transformer"),
        "decoder": Made("pixart-alpha", "vae.decoder"),
    }.items()
}
