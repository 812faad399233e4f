"""The models that mutations are tried on, and a call of each that the session's artifacts serve: one of each family."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from aot.building.recorded import make_plan
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
        plan = make_plan(found, replace(request, scope="whole", shapes=request.shapes[:1]))
        call = next(call for call in plan.calls if call.component == self.path)
        args, kwargs = call.signature.call(call.tensors)
        assert not args
        return plan.modules[self.path].eval().requires_grad_(False), kwargs


SUBJECTS: dict[str, tuple[str, Made]] = {
    name: (made.recipe, made)
    for name, made in {
        "unet": Made("sd21", "unet"),
        "transformer": Made("pixart-alpha", "transformer"),
        "video": Made("latte", "transformer"),
        "decoder": Made("pixart-alpha", "vae.decoder"),
    }.items()
}
