"""What the scripts print must be commands that the program understands."""

import importlib.util
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aot.building.build import Built
from aot.cache_store.local import LocalStore
from aot.cli.request import parse, parse_options
from aot.recipes import RECIPES
from aot.shipping.listing import listing

SCRIPTS = Path(__file__).parent.parent / "scripts"


def _commands() -> list[list[str]]:
    done = subprocess.run([sys.executable, SCRIPTS / "seed_tables.py", "--commands"], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_every_seed_row_is_a_command_whose_every_option_is_known() -> None:
    """The request is parsed as the program parses it on a machine that has the GPU."""
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


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_is_for(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run here: to import torch for each would take minutes."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert not done.value.code
    assert "usage" in capsys.readouterr().out


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_checks_own_steps_run_on_an_artifact_for_this_cpu(
    built: tuple[LocalStore, Built], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a GPU is needed for cannot be tested here; that the steps do what they say can."""
    script, (store, _) = _script("gpu_check"), built
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")
    (row,) = listing(store)
    check = script.Check(tmp_path / "found.json", 10)
    check.step("cross-built", lambda: script.crossbuilt(row, store, "cpu"))
    check.step("flipped", lambda: script.flipped(row, store, 20))
    check.step("fails", lambda: 1 // 0)
    assert check.found["cross-built"]["ok"], check.found
    assert check.found["cross-built"]["relative_l2"] <= 1e-5
    assert check.found["flipped"]["refused"] == 20
    assert check.failed == ["fails"]
    assert "ZeroDivisionError" in (tmp_path / "found.json").read_text()


def test_the_transport_benchmark_runs_and_tells_its_ratios(tmp_path: Path) -> None:
    """Scaled down; what it measures is no test."""
    script = _script("transport")
    assert script.loading(tmp_path, 16)["packed_mib"] >= 4
    assert script.refusing(tmp_path)["untrusted_ms"] > 0
    assert script.many(tmp_path, 30)["artifacts"] == 30
    pulled = script.pulling(tmp_path, 8)
    assert pulled["curl_over_pull"] > 0
    assert pulled["pull_peak_mib"] < 150
    assert pulled["push_peak_mib"] < 150
