"""Options: everything nexfort's users pass as `options`, as a value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aot.choice import choice
from aot.errors import BadInput
from aot.request.mode import Mode, Setting, parse_options

MEMORY_FORMATS = ("preserve", "channels_last")
DEFAULT_MODE = "O2"


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile. `memory_format="channels_last"` applies to 4-d weights; `dynamic` marks height and width."""

    mode: Mode = field(default_factory=lambda: Mode.parse(DEFAULT_MODE))
    memory_format: str = "preserve"
    dynamic: bool = False
    options: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_options(self.options)

    @classmethod
    def parse(cls, given: "Options | Mapping[str, Any] | str | None") -> Self:
        """From nexfort's dict, or the JSON string its users have. Raises BadInput naming the field and what is known."""
        match given:
            case None:
                return cls()
            case cls():
                return given
            case str():
                return cls._of(_json(given))
            case Mapping():
                return cls._of(given)
            case _:
                raise BadInput(f"options are of type {type(given).__name__}.", remedy="give a dict, or the same as a JSON string.")

    @classmethod
    def _of(cls, given: Mapping[str, Any]) -> Self:
        for name in given:
            choice(name, known=("mode", "memory_format", "dynamic", "options"), field="option")
        dynamic, options = given.get("dynamic") or False, given.get("options") or {}
        if not isinstance(dynamic, bool):
            raise BadInput(f"option 'dynamic' is {dynamic!r}.", remedy="give true or false.")
        if not isinstance(options, Mapping) or not all(isinstance(value, bool | int | float | str) for value in options.values()):
            raise BadInput(
                "option 'options' is not an object of numbers, words and booleans.", remedy='for example {"inductor.max_autotune": true}.'
            )
        mode = given.get("mode") or DEFAULT_MODE
        if not isinstance(mode, str):
            raise BadInput(f"option 'mode' is {mode!r}.", remedy='give words joined by colons, for example "max-autotune:cache-all".')
        return cls(
            mode=Mode.parse(mode),
            memory_format=memory_format(given.get("memory_format")),
            dynamic=dynamic,
            options=dict(sorted(options.items())),
        )

    def to_json(self) -> dict[str, Any]:
        """The dict form, mode in canonical form; `Options.parse(o.to_json()) == o`."""
        return {
            "mode": str(self.mode),
            "memory_format": self.memory_format,
            "dynamic": self.dynamic,
            "options": dict(self.options),
        }

    @property
    def inductor(self) -> dict[str, Setting]:
        """Inductor configuration: the mode's, then the user's own options over it."""
        return self.mode.inductor | self.options_of_inductor

    @property
    def options_of_inductor(self) -> dict[str, Setting]:
        """The user's own options for Inductor."""
        return parse_options(self.options)[0]

    @property
    def process(self) -> dict[str, bool]:
        return self.mode.process | parse_options(self.options)[1]


def option_of(text: str) -> tuple[str, Setting]:
    """An option as the command line has it. Raises BadInput naming one that is not NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--option {text!r} is not NAME=VALUE.", remedy="for example --option inductor.epilogue_fusion=false.")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def memory_format(given: Any) -> str:
    """The canonical word; nexfort's users also write `torch.channels_last` and `contiguous_format`."""
    text = "preserve" if given is None else str(given).removeprefix("torch.").removesuffix("_format")
    return choice("preserve" if text == "contiguous" else text, known=MEMORY_FORMATS, field="memory_format")


def _json(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"options are not JSON: {error}.", remedy='quote them, for example \'{"mode": "O3"}\'.') from error
    if not isinstance(found, dict):
        raise BadInput("options are JSON, but not an object.", remedy='for example {"mode": "O3"}.')
    return found
