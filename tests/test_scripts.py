"""What the scripts print must be commands that the program understands."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aot.cli.request import parse, parse_options
from recipes import RECIPES

SCRIPTS = Path(__file__).parent.parent / "scripts"


def _commands() -> list[list[str]]:
    done = subprocess.run([sys.executable, SCRIPTS / "seed_tables.py", "--commands"], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_every_seed_row_is_a_command_whose_every_option_is_known() -> None:
    """All but the GPU, which only its own machine can check: the request is parsed as the program parses it."""
    commands = _commands()
    assert {command[2] for command in commands} == set(RECIPES) - {"sd3"}
    for program, verb, recipe, *words in commands:
        assert (program, verb in ("bench", "build")) == ("aot", True)
        options = [word.split("=", 1)[1] for word in _joined(words) if word.startswith("--option=")]
        flags = dict(word.split("=", 1) if "=" in word else (word, "") for word in _joined(words))
        _, request = parse(
            recipe,
            variant=flags.get("--variant", "full"),
            gpu=flags["--gpu"],
            shapes=[flags["--shape"]] if "--shape" in flags else [],
            shape_list=flags.get("--shapes", ""),
            options=parse_options(flags["--mode"], flags["--memory-format"], options, dynamic="--dynamic" in flags),
            dtype=flags["--dtype"],
            fuse_qkv="--fuse-qkv" in flags,
        )
        assert request.shapes


def _joined(words: list[str]) -> list[str]:
    """`--name value` as `--name=value`."""
    found: list[str] = []
    for word in words:
        if word.startswith("--") or not found:
            found.append(word)
        else:
            found[-1] += f"={word}"
    return found


def test_the_tables_show_published_figures_beside_their_command() -> None:
    done = subprocess.run([sys.executable, SCRIPTS / "seed_tables.py"], capture_output=True, text=True, check=True)
    assert "8.623 -> 10.743" in done.stdout
    assert done.stdout.count("```bash") == len(_commands())


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_is_for(script: str) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
