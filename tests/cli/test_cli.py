"""The program as a user runs it."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from aot.cache_store.local import LocalStore
from aot.cli.app import VERBS
from aot.machine.device import gpus_here
from aot.machine.sku import SKUS
from aot.machine.target import Target
from aot.recipes.rows import FAMILIES
from aot.request.mode import COMBINATIONS, WORDS, Mode


def run(*arguments: str, home: Path | str = "/nonexistent", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aot.cli.app", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "AOT_HOME": str(home), **environ},
    )


BUILD = ("build", "pixart-alpha", "--variant", "tiny", "--gpu", "cpu")


def test_help_comes_without_torch() -> None:
    program = "import sys, aot.cli.app; assert 'torch' not in sys.modules and 'rich' not in sys.modules; aot.cli.app.main()"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("build", "ls", "show", "check", "bench", "prune", "recipes", "modes", "targets"):
        assert f"\n  {verb} " in done.stdout


def test_the_version_is_the_packages() -> None:
    said = run("--version")
    assert (said.returncode, said.stdout) == (0, f"{version('aot')}\n")


def test_every_verb_is_listed_by_the_first_line_of_its_own_help() -> None:
    for name, line in VERBS.items():
        verb = getattr(import_module(f"aot.cli.{name}"), name)
        assert line == (verb.info.help if isinstance(verb, typer.Typer) else verb.__doc__.splitlines()[0])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("build", "pixart-alhpa", "--gpu", "cpu"), 2, "Did you mean 'pixart-alpha'?"),
        ((*BUILD, "--shape", "250x256"), 2, "multiple of 16"),
        ((*BUILD, "--shape", "big"), 2, "HEIGHTxWIDTH"),
        ((*BUILD, "--mode", "max-autotoon"), 2, "'max-autotune'"),
        ((*BUILD, "--mode", "O2:cudagraphs"), 2, "no kernels to record"),
        ((*BUILD, "--mode", "O2:freezing", "--scope", "regional"), 2, "freezing"),
        ((*BUILD, "--shapes", "sed"), 2, "seed"),
        ((*BUILD, "--frames", "16"), 2, "makes images"),
        ((*BUILD, "--guidance", "maybe"), 2, "on, off, both"),
        (("build", "latte", "--gpu", "cpu", "--frames", "8"), 2, "16 frames"),
        (("build", "flux.1-dav", "--gpu", "cpu"), 2, "Did you mean 'flux.1-dev'?"),
        (("build", "flux.1-dev", "--gpu", "cpu", "--variant", "large"), 2, "full, small, tiny"),
        (("build", "flux.1-dev", "--gpu", "cpu", "--shape", "64x64"), 2, "--call NAME=VALUE"),
        (("build", "flux.1-dev", "--gpu", "cpu", "--call", "height"), 2, "NAME=VALUE"),
        (("build", "flux.1-dev", "--gpu", "cpu", "--revision", "main"), 2, "only a repository has it"),
        (("build", "flux.1-dev", "--gpu", "cpu", "--scope", "half"), 2, "whole, regional"),
        (("bench", "flux.1-dev", "--gpu", "cpu"), 2, "it can be built"),
        ((*BUILD, "--call", "height=64"), 2, "a recipe has its own"),
        (("build", "nowhere.json", "--gpu", "cpu"), 2, "there is no file"),
        (("build", "nowhere.json", "--gpu", "cpu", "--call", "a=1"), 2, "a Record has its own"),
        (("build", "nowhere.py", "--gpu", "cpu"), 2, "there is no file"),
        (("build", ".", "--gpu", "cpu"), 2, "model_index.json"),
        (("build", "org/repo", "--gpu", "cpu", "--weights", "org/repo"), 2, "a recipe of ours has such"),
        (("build", "org/repo", "--gpu", "cpu", "--dtype", "float8"), 2, "bfloat16"),
        (("record", "-o", "/nonexistent/record.json", "--", "true"), 2, "there is no folder"),
        (("record", "-o", "record.json", "--", "/nonexistent/program"), 2, "cannot be started"),
        (("build", "latte", "--gpu", "cpu", "--fuse-qkv"), 2, "--fuse-qkv"),
        (("build", "sdxl", "--gpu", "cpu", "--shape", "1020x1024"), 2, "multiple of 8"),
        (("bench", "pixart-alpha", "--gpu", "cpu", "--ways", "lukewarm"), 2, "jit-warm"),
        ((*BUILD, "--option", "inductor.optimize_linear_epilogue=false"), 2, "epilogue_fusion"),
        ((*BUILD, "--option", "nonsense"), 2, "NAME=VALUE"),
        ((*BUILD, "--dtype", "int8"), 2, "--dtype"),
        ((*BUILD, "--scope", "half"), 2, "--scope"),
        ((*BUILD, "--components", "unet"), 2, "transformer"),
        ((*BUILD, "--memory-format", "channels_first"), 2, "channels_last"),
        (("build", "pixart-alpha", "--gpu", "cpu", "--variant", "huge"), 2, "full, small, tiny"),
        (("build", "pixart-alpha", "--gpu", "h300"), 2, "--gpu"),
        (("build", "pixart-alpha"), 2, "--gpu"),
        ((*BUILD, "--torch", "2.9.0"), 2, "--torch 2.9.0 is not supported"),
        ((*BUILD, "--also", "sm_90"), 2, "--also: a CPU"),
        (("build", "pixart-alpha", "--gpu", "h200", "--also", "sm_80"), 2, "newer architectures only"),
        (("check", "pixart-alpha", "--gpu", "h300"), 6, "this store"),
        (("bench", "pixart-alpha", "--gpu", "cpu", "--variant", "tiny", "--steps", "1"), 2, "--steps"),
        (("bench", "pixart-alpha", "--gpu", "cpu", "--variant", "tiny", "--html", "/nonexistent/x.html"), 2, "--html"),
        (("prune",), 2, "--older-than"),
        (("prune", "--older-than", "a while"), 2, "30d"),
        (BUILD, 8, "/nonexistent-root"),
    ],
)
def test_bad_input_is_a_sentence_and_an_exit_code(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    home = "/proc/nonexistent-root" if code == 8 else tmp_path / "home"
    done = run(*arguments, home=home)
    assert done.returncode == code, done.stderr
    assert words in done.stderr or "nonexistent-root" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "home").exists() or arguments[0] == "check"


def test_no_compiler_is_told_before_anything_is_done(tmp_path: Path) -> None:
    done = run(*BUILD, home=tmp_path / "home", CXX="no-such-compiler")
    assert done.returncode == 3
    assert "no-such-compiler" in done.stderr
    assert "fix: install g++" in done.stderr
    assert not (tmp_path / "home").exists()


def test_an_unsupported_torch_is_told(tmp_path: Path) -> None:
    info = tmp_path / "site" / "torch-2.9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    done = run(*BUILD, home=tmp_path / "home", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 3
    assert "torch 2.9.0 is not supported; 2.11 to 2.15 are" in done.stderr


def test_a_store_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    done = run("ls", home=tmp_path / "home")
    assert done.returncode == 8
    assert "AOT-E206" in done.stderr


def test_an_empty_store_lists_nothing_and_shows_nothing(tmp_path: Path) -> None:
    assert json.loads(run("ls", "--json", home=tmp_path / "home").stdout) == []
    done = run("show", "pixart-alpha", home=tmp_path / "home")
    assert done.returncode == 6
    assert "it holds: none" in done.stderr


def test_ls_show_and_prune_tell_of_the_artifact(store: LocalStore) -> None:
    (row,) = json.loads(run("ls", "--json", home=store.root).stdout)
    listed = run("ls", home=store.root).stdout.splitlines()
    assert listed[0].split("\t") == ["recipe", "variant", "target", "mode", "shapes", "size", "age", "key", "digest"]
    assert listed[1].split("\t")[3:5] == ["O2", "64x64 64x96"]
    key, digest = row["key"].removeprefix("sha256:"), row["digest"].removeprefix("sha256:")
    for name in ("pixart-alpha", f"pixart-alpha@{key[:8]}", key[:6], digest, f"sha256:{digest[:9]}"):
        shown = json.loads(run("show", name, "--json", home=store.root).stdout)
        assert shown["digest"] == row["digest"]
    words = run("show", "pixart-alpha", home=store.root).stdout
    for part in ("target.sku", "component/vae.decoder/fingerprint", "quality certificate", "compile_s", row["layers"][1]["digest"]):
        assert part in words

    assert run("prune", "--older-than", "1d", home=store.root).stdout == ""
    assert "pixart-alpha@" in run("prune", "--all", home=store.root).stdout
    assert list((store.root / "v1" / "blobs").iterdir()) == []


def test_fsck_tells_of_a_damaged_manifest_and_ls_when_it_has_to_read_it(store: LocalStore) -> None:
    (path,) = (store.root / "v1" / "manifests").iterdir()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    assert run("fsck", home=store.root).returncode == 7
    (store.root / "v1" / "index").unlink(missing_ok=True)
    done = run("ls", home=store.root)
    assert done.returncode == 7
    assert "AOT-E203" in done.stderr


def test_recipes_tells_of_each_its_components_divisors_scopes_modes_and_fusing(tmp_path: Path) -> None:
    found = {row["recipe"]: row for row in json.loads(run("recipes", "--json", home=tmp_path).stdout)}
    assert list(found) == ["pixart-alpha", "latte", "sd21", "sdxl", "sdxl-ip-adapter", "sd3", *FAMILIES]
    assert found["sdxl"]["components"][0] == {"path": "unet", "optional": False}
    assert "544x408" in found["sdxl"]["seed_shapes"]
    assert [name for name, row in found.items() if not row["fuse_qkv"]] == ["latte", *FAMILIES]
    assert all(row["scopes"] == ["whole", "regional"] and "O3" in row["modes"] for row in found.values())
    assert [variant["frames"] for variant in found["latte"]["variants"]] == [16, 16, 4]
    lines = run("recipes", home=tmp_path).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["recipe", *found]


def test_targets_lists_the_gpus_and_says_what_this_machine_is(tmp_path: Path) -> None:
    found = {row["gpu"]: row for row in json.loads(run("targets", "--json", home=tmp_path).stdout)}
    assert list(found) == list(SKUS)
    assert found["a100-pcie-40gb"]["properties"]["name"] == "NVIDIA A100-PCIE-40GB"
    assert len(run("targets", home=tmp_path).stdout.splitlines()) == len(SKUS) + 1
    here = json.loads(run("targets", "--here", "--json", home=tmp_path).stdout)
    assert here[0]["target"] == str(Target.named("cpu"))
    assert len(here) == 1 + len(gpus_here())


def test_check_says_that_what_was_built_here_is_loaded_here(store: LocalStore) -> None:
    done = run("check", "pixart-alpha", "--json", home=store.root)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["loads"], said["differences"], said["built"]) == (True, [], said["here"])


def test_modes_tells_of_each_word_what_it_sets_and_costs(tmp_path: Path) -> None:
    found = {row["mode"]: row for row in json.loads(run("modes", "--json", home=tmp_path).stdout)}
    assert list(found) == [*COMBINATIONS, *WORDS]
    assert found["cudagraphs"]["device"] == "cuda"
    assert found["benchmark"]["process"] == {"cudnn.benchmark": True}
    assert found["O3"]["inductor"] == Mode.parse("O3").inductor
    assert all(row["does"] and row["costs"] for row in found.values())
    assert len(run("modes", home=tmp_path).stdout.splitlines()) == len(found) + 1


def test_a_row_is_planned_and_nothing_is_stored(tmp_path: Path) -> None:
    done = run("build", "flux.1-dev", "--variant", "tiny", "--gpu", "cpu", "--plan", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [graph["graph"].split()[0] for graph in found["graphs"]] == ["transformer", "transformer", "transformer", "vae.decoder"]
    assert found["present"] is None
    assert found["key"]["recipe"] == "flux.1-dev"
    assert not list(tmp_path.rglob("*.json"))
