"""Compilation: how to compile, and for which machine, whatever it is that is compiled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aot.choice import choice
from aot.errors import BadInput, Unsupported
from aot.machine.sku import ARCHITECTURES, CPU, find_sku
from aot.request.mode import CUDAGRAPHS, FREEZING, TIMED_OPTIONS, Setting
from aot.request.options import Options

SCOPES = ("whole", "regional")
LAYOUTS = ("spaces",)
_NOT_REGIONAL = {
    FREEZING: "it puts each block's own weights into its code, and all blocks share theirs",
    CUDAGRAPHS: "it would record each block by itself, and copy what passes from one to the next",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation(ABC):
    """What every build is asked for."""

    gpu: str
    options: Options
    scope: str = "whole"
    cache_layer: bool = True
    simulate: bool = False  # compile for the GPU without having it
    untuned: bool = False  # leave out what times kernels on the device, though the mode says so
    also: tuple[str, ...] = ()  # further architectures, `sm_90`
    components: tuple[str, ...] = ()  # the paths of those that are compiled; empty: all there are
    lora_rank: int = 0  # of the slots for adapters that graphs have; 0: none
    layout: str = ""  # `spaces`: with packages as ZeroGPU Spaces load them; empty: for our own loading alone
    lora_targets: tuple[str, ...] = ()  # which layers have one, by the ends of their paths; empty: all within blocks

    @abstractmethod
    def about(self) -> dict[str, str]:
        """What was asked for, as parts of a key."""

    def check_machine(self) -> None:
        """Raises BadInput or Unsupported, naming the field, for what this machine, scope or mode cannot be."""
        choice(self.scope, known=SCOPES, field="--scope")
        if self.scope == "regional":
            for word, why in _NOT_REGIONAL.items():
                if word in self.options.mode.words:
                    raise Unsupported(
                        f"mode word {word!r} with --scope regional: {why}.", remedy=f"choose --scope whole, or leave {word} out."
                    )
        _check_lora(self)
        _check_layout(self)
        self.options.mode.check_artifact(CPU if self.gpu == CPU else "cuda")
        _check_simulation(self)
        _check_also(self)

    @property
    def inductor(self) -> dict[str, Setting]:
        """The Inductor configuration to compile with."""
        given = self.options.inductor
        return {name: value for name, value in given.items() if name not in TIMED_OPTIONS} if self.untuned else given


def on_machine(
    gpu: str, options: Options, *, here: bool, mode_given: bool, cache_layer: bool, untuned: bool, also: Iterable[str]
) -> dict[str, Any]:
    """The fields of a Compilation that depend on whether the GPU is `here`. Raises BadInput for a GPU that is not known.

    Who asks for no mode gets what can be built here; who asks for one gets that, or is told why not.
    """
    timed = not TIMED_OPTIONS.isdisjoint(options.options_of_inductor)
    return {
        "gpu": gpu if gpu == CPU else find_sku(gpu).alias,
        "options": options,
        "cache_layer": cache_layer and here,  # it is what torch.compile leaves behind when it runs on the device
        "simulate": not here,
        "untuned": untuned or (not here and not mode_given and not timed),
        "also": tuple(dict.fromkeys(also)),
    }


def _check_simulation(request: Compilation) -> None:
    """Raises Unsupported for what cannot be compiled without the GPU itself, with the nearest that can."""
    if not request.simulate:
        return
    mode, name = request.options.mode, find_sku(request.gpu).name
    if mode.freezing:
        raise Unsupported(
            f"mode word {FREEZING!r} without the GPU: it folds the weights into the code on the device, and there is no {name} here.",
            remedy=f"leave {FREEZING} out, or build on a machine that has the GPU.",
        )
    timed = [*mode.timed, *sorted(TIMED_OPTIONS & set(request.options.options_of_inductor))]
    if timed and not request.untuned:
        raise Unsupported(
            f"{', '.join(timed)}: chooses kernels by timing them on the device, and there is no {name} here.",
            remedy=f"--untuned takes Inductor's default choices; --mode {mode.without_timing()} is the nearest without timing; "
            "or build on a machine that has the GPU.",
        )


def _check_layout(request: Compilation) -> None:
    """Raises BadInput or Unsupported for what packages with weights of their own cannot be."""
    if not request.layout:
        return
    choice(request.layout, known=LAYOUTS, field="--layout")
    if request.lora_rank:
        raise Unsupported("--layout spaces with --lora-rank: a Space has no slots to give.", remedy="leave one of them out.")
    if FREEZING in request.options.mode.words:
        raise Unsupported(f"--layout spaces with mode word {FREEZING!r}: a Space binds weights by name.", remedy=f"leave {FREEZING} out.")


def _check_lora(request: Compilation) -> None:
    """Raises BadInput or Unsupported for slots that cannot be."""
    if request.lora_rank < 0 or (request.lora_targets and not request.lora_rank):
        raise BadInput(
            f"--lora-rank {request.lora_rank} is no rank.", remedy="give that of the largest adapter, or the sum of those used at once."
        )
    if request.lora_rank and FREEZING in request.options.mode.words:
        raise Unsupported(
            f"mode word {FREEZING!r} with --lora-rank: adapters change what it puts into the code.", remedy=f"leave {FREEZING} out."
        )


def _check_also(request: Compilation) -> None:
    """Raises BadInput or Unsupported for architectures that cannot be in one artifact with the target's."""
    if not request.also:
        return
    if request.gpu == CPU:
        raise Unsupported("--also: a CPU has no such architectures.", remedy="leave it out.")
    known = {str(arch): (arch.major, arch.minor) for arch in ARCHITECTURES}
    own = find_sku(request.gpu).architecture
    for text in request.also:
        choice(text, known=known, field="--also")
        if known[text] <= (own.major, own.minor):
            raise Unsupported(
                f"--also {text}: its code is made from that of {own}, which runs on newer architectures only.",
                remedy=f"build for the oldest (--gpu of {text}), and name the newer ones with --also.",
            )
