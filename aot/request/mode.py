"""Mode: how to compile, in nexfort's words, and what each word sets on today's torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from aot.choice import choice
from aot.errors import BadInput, Unsupported

Setting: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Word:
    """One mode word: what it does and costs, the Inductor configuration and the process-wide settings it stands for."""

    does: str
    costs: str
    inductor: Mapping[str, Setting] = field(default_factory=dict)
    process: Mapping[str, bool] = field(default_factory=dict)
    device: str = ""  # the only device it can be built for; empty: any
    reason: str = ""  # why no other
    timed: bool = False  # whether it chooses kernels by timing them on the device


LOW_PRECISION, FREEZING, CUDAGRAPHS = "low-precision", "freezing", "cudagraphs"

TF32 = {
    "cuda.matmul.allow_tf32": True,
    "cudnn.allow_tf32": True,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "cuda.matmul.allow_bf16_reduced_precision_reduction": True,
}

# The mapping and its reasons: nexfort's documentation of its modes, read against torch 2.13's Inductor configuration.
WORDS: Mapping[str, Word] = {
    "cache-all": Word(
        "keep everything that was compiled: the artifact itself, and Inductor's caches, on by default", "a cache layer beside the graphs"
    ),
    "max-autotune": Word(
        "search for the best kernels", "minutes of timing kernels at build, on the GPU itself", inductor={"max_autotune": True}, timed=True
    ),
    "max-optimize": Word(
        "search further: tiles by coordinate descent, several kernels a fusion, Triton beside the library's matmuls",
        "as max-autotune, several times over",
        inductor={
            "coordinate_descent_tuning": True,
            "triton.multi_kernel": 1,
            "max_autotune_gemm_backends": "TRITON,ATEN",
        },
        timed=True,
    ),
    CUDAGRAPHS: Word(
        "record the kernel launches at a call's first time, replay them from then on",
        "recorded again at every start, never in an artifact; memory for each recorded call's inputs and outputs",
        inductor={"triton.cudagraphs": True},
        device="cuda",
        reason="a CPU launches no kernels to record; leave the word out",
    ),
    FREEZING: Word(
        "fold the weights into the code as constants",
        "an artifact as large as the weights, of use to these weights only: their digest is in the key, and taken at every load",
        inductor={"freezing": True},
    ),
    "benchmark": Word("let cuDNN time its convolutions", "seconds at each new size, in every process", process={"cudnn.benchmark": True}),
    LOW_PRECISION: Word(
        "TF32 matmuls and convolutions, reduced-precision reductions, fast math",
        "accuracy: the build accepts a relative L2 error of 2e-2",
        inductor={"use_fast_math": True},
        process=TF32,
    ),
    "jit": Word("nothing today: nexfort's quick compile; `--scope regional` is the fast-compile choice", "nothing"),
    "disable-runtime-fusion": Word(
        "compile each operation by itself",
        "speed at run time",
        inductor={"max_fusion_size": 1, "epilogue_fusion": False, "prologue_fusion": False},
    ),
}
COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "O2": ("max-optimize", "max-autotune", "cache-all"),
    "O3": ("max-optimize", "max-autotune", "low-precision", "cache-all"),
}
# Inductor's options that time kernels: those of the timed words, and others that a user may set
TIMED_OPTIONS = frozenset(
    {
        *(name for word in WORDS.values() if word.timed for name in word.inductor),
        *("max_autotune_gemm", "max_autotune_pointwise", "benchmark_kernel", "benchmark_fusion", "benchmark_epilogue_fusion"),
        *("benchmark_combo_kernel", "combo_kernels_autotune", "coordinate_descent_check_all_directions"),
    }
)
NO_WORDS = "default"  # the text form of a mode without words: Inductor's own defaults

_REPLACED = {
    "inductor.optimize_linear_epilogue": "Inductor's epilogue fusion does it, always; `inductor.epilogue_fusion` turns that off",
    "triton.fuse_attention_allow_fp16_reduction": "nothing: attention runs in torch's own kernels, which never do",
}
_OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "overrides.conv_benchmark": ("cudnn.benchmark",),
    "overrides.conv_allow_tf32": ("cudnn.allow_tf32",),
    "overrides.matmul_allow_tf32": ("cuda.matmul.allow_tf32",),
}


@dataclass(frozen=True, slots=True)
class Mode:
    """A sequence of mode words without repetition; where two disagree the earlier wins. `parse(str(m)) == m`."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join(self.words) or NO_WORDS

    @property
    def title(self) -> str:
        """The combination's name if it is one, else the text form."""
        return next((name for name, words in COMBINATIONS.items() if words == self.words), str(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Words joined by colons; `O2` and `O3` stand for theirs. Raises BadInput listing the known words."""
        found: dict[str, None] = {}
        for word in text.split(":"):
            if word != NO_WORDS:
                known = choice(word, known=[*WORDS, *COMBINATIONS, NO_WORDS], field="mode word")
                found |= dict.fromkeys(COMBINATIONS.get(known, (known,)))
        return cls(tuple(found))

    @property
    def inductor(self) -> dict[str, Setting]:
        """Inductor configuration, earlier words winning."""
        return {name: value for word in reversed(self.words) for name, value in WORDS[word].inductor.items()}

    @property
    def process(self) -> dict[str, bool]:
        """Settings below `torch.backends` that hold for the whole process."""
        return {name: value for word in reversed(self.words) for name, value in WORDS[word].process.items()}

    @property
    def freezing(self) -> bool:
        """Whether weights are constants of the code."""
        return FREEZING in self.words

    @property
    def cudagraphs(self) -> bool:
        """Whether the launches of a loaded graph are recorded and replayed."""
        return CUDAGRAPHS in self.words

    @property
    def timed(self) -> tuple[str, ...]:
        """The words that time kernels on the device."""
        return tuple(word for word in self.words if WORDS[word].timed)

    def without_timing(self) -> "Mode":
        """The nearest mode that times nothing."""
        return Mode(tuple(word for word in self.words if not WORDS[word].timed))

    def check_artifact(self, device: str) -> None:
        """Raises Unsupported, with the reason, when no artifact for `device` can have this mode."""
        for word in self.words:
            needs = WORDS[word]
            if needs.device and needs.device != device:
                raise Unsupported(f"mode word {word!r} cannot be built for {device}.", remedy=f"{needs.reason}.")


def parse_options(options: Mapping[str, Setting]) -> tuple[dict[str, Setting], dict[str, bool]]:
    """nexfort's `options` as Inductor configuration and process settings.

    `inductor.X` and `triton.X` are passed on under today's names, `overrides.X` set the process. Raises BadInput for a
    name that is none of these, or that today's torch no longer has, with what replaces it.
    """
    inductor: dict[str, Setting] = {}
    process: dict[str, bool] = {}
    for name, value in options.items():
        group, _, rest = name.partition(".")
        if name in _REPLACED:
            raise BadInput(f"option {name!r} is gone from today's torch.", remedy=f"leave it out; in its place: {_REPLACED[name]}.")
        if group == "overrides":
            settings = _OVERRIDES[choice(name, known=_OVERRIDES, field="option")]
            process |= dict.fromkeys(settings, bool(value))
        elif group in ("inductor", "triton") and rest:
            inductor[rest if group == "inductor" else name] = value
        else:
            raise BadInput(f"option {name!r} is unknown.", remedy=f"known are: inductor.NAME, triton.NAME, {', '.join(_OVERRIDES)}.")
    return inductor, process
