"""Attributes: what an instance has of its own that a forward could read."""

from __future__ import annotations

from typing import Any

from torch import nn

from aot.model.collector import INSTALLED

SEALS = "_aot_seals"  # what was found of a module when it was last compared with an artifact
# Where an object came from, which release wrote it, how its weights were brought: set by loading code, read by no forward
NOTES = frozenset(
    {
        SEALS,
        "_is_torch_compile",  # what torch.compile notes on a module that it is given, from 2.13 on
        *("lora_scale", "_safe_fusing", "_hf_peft_config_loaded", "peft_config"),  # what was loaded: its layers are in the tree, or gone
        *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "_diffusers_version", "_class_name", "_auto_class"),
        INSTALLED,
        *("_use_kernels", "_weight_conversions", "model_type"),  # what from_pretrained of transformers leaves behind
        *("extra_repr", "_use_default_values", "_is_hf_initialized", "architectures", "_pre_quantization_dtype", "hf_device_map"),
    }
)
MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}
_REGISTRY = "_diffusers_hook"  # where diffusers keeps the hooks of a model; every call of a pipeline leaves an empty one

_COMPILED = "_compiled_call_impl"  # what `module.compile()` leaves: a way to call it, which torch's own pickles leave out


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What an instance has of its own beside children, weights and hooks, without notes, a registry of hooks that is empty and what
    torch.compile made of its call."""
    own = {name: value for name, value in vars(module).items() if name not in MODULE_INTERNALS and name not in NOTES}
    if _is_compiled(module, own.get(_COMPILED)):
        del own[_COMPILED]
    if _REGISTRY in own and not getattr(own[_REGISTRY], "hooks", True):
        del own[_REGISTRY]
    return own


def _is_compiled(module: nn.Module, call: Any) -> bool:
    """Whether `call` is what torch.compile makes of the module's own."""
    of = getattr(call, "_torchdynamo_orig_callable", None)
    return getattr(of, "__func__", None) is nn.Module._call_impl and getattr(of, "__self__", None) is module
