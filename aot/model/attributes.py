"""Attributes: what an instance has of its own that a forward could read."""

from __future__ import annotations

from typing import Any

from torch import nn

from aot.model.collector import INSTALLED

# Where an object came from, which release wrote it, how its weights were brought: set by loading code, read by no forward
NOTES = frozenset(
    {
        *("lora_scale", "_safe_fusing", "_hf_peft_config_loaded", "peft_config"),  # what was loaded: its layers are in the tree, or gone
        *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "_diffusers_version", "_class_name", "_auto_class"),
        INSTALLED,
        *("_use_kernels", "_weight_conversions", "model_type"),  # what from_pretrained of transformers leaves behind
        *("extra_repr", "_use_default_values", "_is_hf_initialized", "architectures", "_pre_quantization_dtype", "hf_device_map"),
    }
)
MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}
_REGISTRY = "_diffusers_hook"  # where diffusers keeps the hooks of a model; every call of a pipeline leaves an empty one


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What an instance has of its own beside children, weights and hooks, without notes and a registry of hooks that is empty."""
    own = {name: value for name, value in vars(module).items() if name not in MODULE_INTERNALS and name not in NOTES}
    if _REGISTRY in own and not getattr(own[_REGISTRY], "hooks", True):
        del own[_REGISTRY]
    return own
