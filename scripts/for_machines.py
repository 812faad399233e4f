"""Write the pages for machines that read them: `aot/llms.txt`, an index of all pages, and `aot/SKILL.md`, what an agent needs to work with.

    python scripts/for_machines.py [--check]

Both are made from the pages and from the command line's own help. `--check` writes nothing, and ends with 1 where one is not what it
would be made today.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aot
from aot.cli.app import VERBS, load

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "aot"  # they are part of the package: an agent finds them in an environment
PAGES = (
    *("README.md", "aot/building/README.md", "aot/machine/README.md", "aot/request/README.md", "aot/shipping/README.md"),
    *("aot/serving/README.md", "aot/fleet/README.md", "aot/cli/README.md", "recipes/README.md", "scripts/README.md"),
    *("SECURITY.md", "cache_store/FORMAT.md", "CHANGELOG.md"),
)
TAKEN = ("Build, once per machine type", "Ship, signed", "Serve")  # sections of README.md
_DESCRIPTION = (
    "Compile diffusers pipelines once per GPU model, torch version and mode, on a host that need not have the GPU; ship the result signed "
    "through the Hugging Face Hub; load it without compiling. For slow start-up of compiled diffusion models, torch.compile caches that "
    "miss, compiling for a GPU that is not there, and ZeroGPU Spaces."
)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    wanted = {"llms.txt": index(), "SKILL.md": skill()}
    if parser.parse_args().check:
        stale = [name for name, text in wanted.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text]
        if stale:
            raise SystemExit(f"{', '.join(stale)}: not what the pages and the help say; run python scripts/for_machines.py")
        return
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)


def index() -> str:
    """As llmstxt.org has it: title, summary, links with a line on each."""
    lines = [f"# aot\n\n> {_first_paragraph('README.md')}\n", "## Pages\n"]
    lines += [f"- [{_title(page)}]({_from_folder(page)}): {_sentence(_first_paragraph(page))}" for page in PAGES]
    return "\n".join(
        [*lines, "", "## For agents\n", "- [SKILL.md](SKILL.md): how to build, ship and serve, every command, every exit code", ""]
    )


def skill() -> str:
    """Front matter, the sections of README that say how, the commands by their own help, the exit codes."""
    readme = (ROOT / "README.md").read_text()
    parts = [
        f"---\nname: aot\ndescription: {_DESCRIPTION}\n---\n",
        f"# aot\n\n{_first_paragraph('README.md')}\n",
        *(_relinked(_plain(_section(readme, name)), ROOT / "README.md") for name in TAKEN),
        f"## In Python\n\n{chr(10).join(map(_function, sorted({*aot.__all__} - {'__version__'})))}\n",
        "## Commands\n\nEach takes `--help`; data goes to stdout, words to stderr.\n",
        *map(_command, VERBS),
        f"## Exit codes\n\n{_table((ROOT / 'aot/cli/README.md').read_text(), '| exit code | is |')}\n",
    ]
    return "\n".join(parts)


def _function(name: str) -> str:
    found = getattr(aot, name)
    taken = ", ".join(inspect.signature(found).parameters) if inspect.isfunction(found) else ""
    called = f"{name}({taken})" if inspect.isfunction(found) else name
    return f"- `aot.{called}`: {_sentence((inspect.getdoc(found) or '').split(chr(10) + chr(10))[0])}"


def _command(name: str) -> str:
    return "\n".join(_described(f"aot {name}", load(name)))


def _described(name: str, command: Any) -> Iterator[str]:
    if commands := getattr(command, "commands", None):
        for word, below in commands.items():
            yield from _described(f"{name} {word}", below)
        return
    values = [param.metavar or param.name.upper() for param in command.params if param.param_type_name == "argument"]
    yield f"- `{' '.join([name, *values])}`: {' '.join((command.help or '').split())}"
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    if options:
        yield "  - " + "; ".join(f"`{param.opts[-1]}` {' '.join((param.help or '').split()).rstrip('.')}" for param in options)


def _section(text: str, name: str) -> str:
    begin = text.index(f"## {name}\n")
    end = text.find("\n## ", begin + 1)
    return text[begin : end if end > 0 else None].strip() + "\n"


def _table(text: str, head: str) -> str:
    return text[text.index(head) :].split("\n\n", maxsplit=1)[0].strip()


def _plain(text: str) -> str:
    return re.sub(r"<!--.*?-->\n", "", text)


def _relinked(text: str, page: Path) -> str:
    """With links that lead from where it is written to."""
    return _LINK.sub(lambda match: f"]({_from_folder((page.parent / match[1]).relative_to(ROOT).as_posix())}{match[2] or ''})", text)


def _from_folder(path: str) -> str:
    return path.removeprefix("aot/") if path.startswith("aot/") else f"../{path}"


def _title(page: str) -> str:
    return (ROOT / page).read_text().splitlines()[0].removeprefix("# ")


def _first_paragraph(page: str) -> str:
    """The first that is prose."""
    found = re.sub(r"```.*?```", "", _plain((ROOT / page).read_text()), flags=re.DOTALL).split("\n\n")[1:]
    return next(text.strip() for text in found if text.strip() and not text.strip().startswith(("|", "#", "!", "-")))


def _sentence(text: str) -> str:
    found = _LINK.sub("", text).replace("[", "").replace("\n", " ")
    return re.split(r"(?<=\.)\s", found)[0]


if __name__ == "__main__":
    main()
