"""LoRAs in compiled graphs: what room for them costs at each call, how long a swap takes, and how near eager the results are.

    python scripts/lora.py --ranks 16 64 --json scripts/results/lora-cpu.json

A diffusion transformer of width 1536 (two blocks, seeded noise for weights, 256 tokens) is built without slots and with slots of each
rank; then all are called in turns. A swap is `load_lora_adapter(hotswap=True)` of an adapter of half the rank, and what it adds to the next
call; `set_adapters` likewise. Its call is one of 4 tokens: what calls of 256 differ by is more than a swap takes. Prints one JSON object,
in milliseconds; a call is the least of many, a swap the median of 100.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model_state_dict

import aot
from aot.artifact.certificate import compare

_WIDTH, _HEADS = 1536, 24
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def model() -> Any:
    torch.manual_seed(0)
    made = SD3Transformer2DModel(
        sample_size=64,
        num_layers=2,
        attention_head_dim=_WIDTH // _HEADS,
        num_attention_heads=_HEADS,
        joint_attention_dim=64,
        caption_projection_dim=_WIDTH,
        pooled_projection_dim=64,
    )
    return made.eval().requires_grad_(False)


def call(side: int = 32, text: int = 77) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden_states": (1, 16, side, side), "encoder_hidden_states": (1, text, 64), "pooled_projections": (1, 64)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep": torch.tensor([500.0]), "return_dict": False}


def adapter(rank: int, seed: int) -> dict[str, torch.Tensor]:
    made = model()
    torch.manual_seed(seed)
    made.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS, init_lora_weights=False), adapter_name="made")
    return {f"transformer.{name}": value.clone() for name, value in get_peft_model_state_dict(made, adapter_name="made").items()}


def load(module: Any, state: dict[str, torch.Tensor], *, name: str = "style", hotswap: bool = False) -> None:
    module.load_lora_adapter({key: value.clone() for key, value in state.items()}, prefix="transformer", adapter_name=name, hotswap=hotswap)


def seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def of_rank(rank: int, given: dict[str, Any], home: Path) -> tuple[Any, dict[str, Any]]:
    """A served model with slots of that rank, 0 being none; and how near eager it was with adapters, and what swapping took."""
    os.environ["AOT_HOME"] = str(home / f"rank{rank}")
    short = call(4, 4)
    aot.build(model(), lambda made: (made(**given), made(**short)), gpu="cpu", scope="regional", lora_rank=rank)
    served = aot.compile(model(), on_miss="error")
    if not rank:
        return served, {}
    eager, found = model(), {"rank": rank}
    states = [adapter(rank // 2, seed) for seed in (1, 2)]
    for made in (served, eager):
        load(made, states[0])
        load(made, states[1], name="other")
        made.set_adapters(["style", "other"], [0.7, -0.5])
    found["relative_l2"] = compare(served(**given)[0], eager(**given)[0]).relative_l2
    served.delete_adapters("other")
    served.set_adapters("style")
    plain, weighed, swapped = [], [], []
    for number in range(100):
        served(**short)
        plain.append(seconds(lambda: served(**short)))
        weighed.append(seconds(lambda: (served.set_adapters("style", 0.5), served(**short))))
        swapped.append(seconds(lambda number=number: (load(served, states[number % 2], hotswap=True), served(**short))))  # type: ignore[misc]
    own = statistics.median(plain)
    found["set_adapters_ms"] = round((statistics.median(weighed) - own) * 1e3, 2)
    found["hotswap_ms"] = round((statistics.median(swapped) - own) * 1e3, 2)
    return served, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["NEXFORT_GRAPH_CACHE"] = "1"
    given = call()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as home:
        served = {rank: of_rank(rank, given, Path(home)) for rank in (0, *asked.ranks)}
        times: dict[int, list[float]] = {rank: [] for rank in served}
        for _ in range(asked.rounds):
            for rank, (module, _) in served.items():
                times[rank].append(seconds(lambda module=module: module(**given)))  # type: ignore[misc]
    least = min(times[0])
    rows = [{**found, "call_over_none": round(min(times[rank]) / least, 4)} for rank, (_, found) in served.items() if rank]
    stats = aot.stats()
    counts = {"misses": sum(len(one["misses"]) for one in stats), "compiled": sum(bool(one["compiled"]) for one in stats)}
    result = {"torch": torch.__version__, "width": _WIDTH, "call_ms_none": round(least * 1e3, 1), "rows": rows, **counts}
    print(json.dumps(result))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
