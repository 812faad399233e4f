"""Origin: a pipeline by its configs alone, in a folder or a repository, and the calls that are asked of it. Weights are not needed."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.cache_store.errors import Unreachable
from aot.choice import choice
from aot.errors import BadInput, Unsupported, first_line
from aot.request.named import Named, artifact_name

if TYPE_CHECKING:
    from aot.request.record import Record

INDEX = "model_index.json"
_CONFIGS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # all of a repository but its weights
_WEIGHTS = ["*.safetensors.index*.json", "*.bin.index*.json"]
PROMPT = "a lighthouse above a stormy sea at dusk, oil on canvas"  # for a call that names none
STEPS = 2  # enough: every step calls alike, and one alone takes another branch in some pipelines
_SIZE = re.compile(r"[1-9]\d*(x[1-9]\d*)+")


@dataclass(frozen=True, slots=True)
class Origin(Named):
    """A folder of `save_pretrained`, or a repository at a `revision`, and the arguments of each call to record.

    An image or mask is written as HEIGHTxWIDTH, embeddings and latents as their sizes (`prompt_embeds=1x512x4096`): what is in them
    is no matter. A prompt, and two steps, are given to every call that has none.
    """

    source: str
    calls: tuple[Mapping[str, Any], ...] = ({},)
    dtype: str = "float32"
    revision: str = ""

    @property
    def own_name(self) -> str:
        """The artifact's, where none is given: the last part of the source, as such names are written."""
        last = Path(self.source).resolve().name if Path(self.source).is_dir() else self.source.rsplit("/", 1)[-1]
        return artifact_name(last)

    def check(self) -> None:
        """Raises BadInput for a folder that holds no pipeline. Nothing is fetched."""
        folder = Path(self.source)
        if folder.is_dir() and not (folder / INDEX).is_file():
            raise BadInput(
                f"{self.source} holds no {INDEX}.", remedy="name the folder that a pipeline's save_pretrained wrote, or a repository."
            )

    def record(self, name: str = "") -> Record:
        """Make the pipeline without weights, and write down what each call of it calls.

        Raises BadInput for a source that is no pipeline and for calls that it does not take, Unsupported for what has no
        config to be made from, Unreachable.
        """
        import torch

        from aot.request.record import record

        pipeline = self.pipeline()
        with record(pipeline, name=name or self.own_name) as found, torch.no_grad():
            for call in self.calls:
                call_pipeline(pipeline, call, self.dtype)
        return found

    def pipeline(self) -> Any:
        """The pipeline, on the CPU, its parameters without numbers. Raises as `record` does."""
        import diffusers
        import torch

        folder = self._folder()
        index = _index(folder / INDEX)
        kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
        if not _is_subclass(kind, diffusers.DiffusionPipeline):
            raise Unsupported(
                f"{self.source} is a {index.get('_class_name')}, which diffusers {diffusers.__version__} does not have.",
                remedy="update diffusers, or build from the live pipeline: aot.build(pipe, call, gpu=...).",
            )
        parts = _modules(folder, index, getattr(torch, self.dtype))
        found = kind.from_pretrained(folder, **parts, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found

    def _folder(self) -> Path:
        if (Path(self.source) / INDEX).is_file():
            return Path(self.source)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            found = snapshot_download(self.source, revision=self.revision or None, allow_patterns=_CONFIGS, ignore_patterns=_WEIGHTS)
        except HFValidationError as error:
            raise BadInput(
                f"{self.source!r} is no folder that holds a {INDEX}, and no repository's name.", remedy="write ORGANISATION/NAME."
            ) from error
        except OSError as error:  # the client's own errors, of connections and of the Hub's answers, are such
            raise Unreachable(
                f"the configs of {self.source} cannot be fetched: {first_line(error)}",
                remedy="check the name and the token, or name a folder that has them.",
            ) from error
        if not (Path(found) / INDEX).is_file():
            raise BadInput(f"{self.source} holds no {INDEX}: it is no pipeline.", remedy="name a repository of a diffusers pipeline.")
        return Path(found)


def call_pipeline(pipeline: Any, call: Mapping[str, Any], dtype: str) -> None:
    """Call it as `call` says, its values as `--call` writes them. Raises BadInput for what it does not take."""
    known = inspect.signature(pipeline.__call__).parameters
    for name in call:
        choice(name, known=known, field=f"--call of {type(pipeline).__name__}")
    defaults = {"num_inference_steps": STEPS} | ({} if "prompt_embeds" in call else {"prompt": PROMPT})
    given = {name: value for name, value in defaults.items() if name in known}
    given |= {name: _value(name, value, dtype) for name, value in call.items()}
    try:
        pipeline(**given)
    except (TypeError, ValueError, AttributeError) as error:
        said = ", ".join(f"{name}={value}" for name, value in call.items()) or "its defaults"
        raise BadInput(
            f"{type(pipeline).__name__} cannot be called with {said}: {error}",
            remedy="give what it needs with --call NAME=VALUE,…; an image as image=HEIGHTxWIDTH.",
        ) from error


def _index(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{path.name} of the pipeline is no JSON: {error}", remedy="save or download it again.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path.name} of the pipeline is no JSON object.", remedy="save or download it again.")
    return found


def _is_subclass(kind: Any, of: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, of)


def _modules(folder: Path, index: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Those of the pipeline's parts that have weights, made without them; None for those that it is saved without."""
    from torch import nn

    from aot.model.unweighted import class_named, unweighted

    found: dict[str, Any] = {}
    for name, value in index.items():
        if value == [None, None]:
            found[name] = None
        if name.startswith("_") or not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            continue
        kind = class_named(*value, what=name)
        if issubclass(kind, nn.Module):
            found[name] = unweighted(kind, folder / name, dtype)
    return found


def _value(name: str, value: Any, dtype: str) -> Any:
    """An argument as the pipeline takes it."""
    if isinstance(value, list):
        return [_value(name, item, dtype) for item in value]
    if not (isinstance(value, str) and _SIZE.fullmatch(value)):
        return value
    sizes = [int(size) for size in value.split("x")]
    if "mask" in name and ("embeds" in name or "attention" in name):
        import torch

        return torch.ones(sizes, dtype=torch.int64)
    if "embeds" in name or "latents" in name:
        import torch

        return torch.zeros(sizes, dtype=getattr(torch, dtype))
    if ("image" in name or "mask" in name) and len(sizes) == 2:
        from PIL import Image

        return Image.new("RGB", (sizes[1], sizes[0]), (127, 127, 127))
    return value
