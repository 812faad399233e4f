"""A Ray Serve deployment that is healthy when its graphs are loaded, and tells Prometheus what they serve.

NEXFORT_GRAPH_CACHE=hf://acme/artifacts serve run scripts.examples.ray_serve:app
curl -X POST localhost:8000 -d '{"seed": 1}' > picture.png
"""

from __future__ import annotations

import io
import os

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import aot
from aot.recipes import find
from aot.request.example import Example
from aot.request.shape import Shape

VARIANT, STEPS = os.environ.get("VARIANT", "full"), int(os.environ.get("STEPS", "20"))


@serve.deployment(ray_actor_options={"num_gpus": float(os.environ.get("GPUS", "1"))}, health_check_period_s=30)
class Pictures:
    """One replica: a pipeline whose first request is as quick as any other."""

    def __init__(self) -> None:
        self._recipe = find("pixart-alpha")  # your own pipeline: DiffusionPipeline.from_pretrained(...).to("cuda")
        self._row = self._recipe.variant(VARIANT)
        self._pipe = self._recipe.pipeline(self._row, dtype="float32", weights=None)
        aot.compile_pipe(self._pipe, strict=True)  # what would compile is an error here, and the replica is not started
        aot.export_metrics()

    def check_health(self) -> None:
        """Ray asks; a replica that raises is replaced."""
        if not (found := aot.ready(self._pipe)):
            raise RuntimeError(str(found))

    async def __call__(self, request: Request) -> Response:
        return Response(self.picture(**await request.json()), media_type="image/png")

    def picture(self, seed: int = 0, size: str = "") -> bytes:
        """A PNG of a size, HEIGHTxWIDTH."""
        shape = Shape.parse(size) if size else self._row.shape
        call = self._recipe.call(self._pipe, Example(shape), STEPS, seed)
        data = io.BytesIO()
        self._pipe(**{**call, "output_type": "pil"}).images[0].save(data, "PNG")
        return data.getvalue()


app = Pictures.bind()
