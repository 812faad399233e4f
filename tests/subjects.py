"""The models that mutations are tried on, and a call of each that an artifact serves: one of each family, and three of today."""

import os
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from aot.building.build import Built, build
from aot.building.plan import Plan
from aot.building.recorded import make_plan, plan_recorded
from aot.cache_store.local import LocalStore
from aot.machine.device import Device
from aot.recipes import find
from aot.request.options import Options
from aot.request.record import Record, record
from aot.request.recorded import Recorded
from aot.request.request import Request
from tests.conftest import ARTIFACTS, request_for
from tests.pipelines import make
from tests.shared import quiet

Subject = tuple[nn.Module, dict[str, Any]]


class Made(Protocol):
    """Makes a tiny model and a call of it; and builds an artifact of it into a store."""

    def __call__(self) -> Subject: ...

    def build(self, store: LocalStore, scope: str) -> Built: ...


@dataclass(frozen=True)
class OfRecipe:
    """The component at `path` of a recipe's tiny pipeline."""

    recipe: str
    path: str

    def __call__(self) -> Subject:
        request: Request = request_for(recipe=self.recipe, **ARTIFACTS[self.recipe])
        return _subject(make_plan(find(self.recipe), replace(request, scope="whole", shapes=request.shapes[:1])), self.path)

    def build(self, store: LocalStore, scope: str) -> Built:
        changes = {**ARTIFACTS[self.recipe], "scope": scope, "components": (self.path,), "cache_layer": False}
        return build(request_for(recipe=self.recipe, **changes), store, progress=quiet, environ=os.environ)


@dataclass(frozen=True)
class OfPipeline:
    """The component at `path` of a tiny pipeline of `tests.pipelines`."""

    pipeline: str
    path: str

    def __call__(self) -> Subject:
        return _subject(plan_recorded(self._recorded(), self._request("whole"), Device.of("cpu"), weights=True), self.path)

    def build(self, store: LocalStore, scope: str) -> Built:
        return build(self._request(scope), store, source=self._recorded(), progress=quiet, environ=os.environ)

    def _recorded(self) -> Record:
        pipeline, call = make(self.pipeline)
        with record(pipeline, name=self.pipeline) as found, torch.no_grad():
            pipeline(**call)
        return found

    def _request(self, scope: str) -> Recorded:
        return Recorded(name=self.pipeline, gpu="cpu", options=Options(), scope=scope, components=(self.path,), cache_layer=False)


def _subject(plan: Plan, path: str) -> Subject:
    call = next(call for call in plan.calls if call.component == path)
    args, kwargs = call.signature.call(call.tensors)
    assert not args
    return plan.modules[path].eval().requires_grad_(False), kwargs


# by recipe: the artifact that the session's tests share
SHARED: dict[str, tuple[str, OfRecipe]] = {
    name: (made.recipe, made)
    for name, made in {
        "unet": OfRecipe("sd21", "unet"),
        "transformer": OfRecipe("pixart-alpha", "transformer"),
        "video": OfRecipe("latte", "transformer"),
        "decoder": OfRecipe("pixart-alpha", "vae.decoder"),
    }.items()
}
SUBJECTS: dict[str, Made] = {
    **{name: made for name, (_, made) in SHARED.items()},
    "flux": OfPipeline("flux", "transformer"),
    "z-image": OfPipeline("z-image", "transformer"),
    "wan": OfPipeline("wan", "transformer"),
}
