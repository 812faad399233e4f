"""The examples of `scripts/examples`: what linters take, made of commands that exist, and run as far as that goes here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aot.cache_store.local import LocalStore
from aot.cli.app import VERBS, load
from tests.cache_store.hub_server import Hub

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
WORKFLOW, JOB, DEPLOY = EXAMPLES / "build-on-release.yml", EXAMPLES / "kubernetes-job.yaml", EXAMPLES / "deploy.Dockerfile"
REPO = "acme/artifacts"

# a server that knows nothing of us but for where its pipeline comes from
PROGRAM = """
import torch
from aot.recipes import find
from aot.request.example import Example
from aot.request.shape import Shape

recipe = find("pixart-alpha")
torch.manual_seed(0)
pipe = recipe.pipeline(recipe.variant("tiny"), dtype="float32", weights=None)
with torch.no_grad():
    pipe(**recipe.call(pipe, Example(Shape.parse("64x64")), 2, 0))
"""


def _tool(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([Path(sys.executable).parent / name, *words], capture_output=True, text=True)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.Dockerfile")), ids=lambda file: file.name)
def test_dockerfiles_are_what_hadolint_takes(file: Path, tmp_path: Path) -> None:
    done = _tool("hadolint", file)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text(file.read_text() + "RUN cd /tmp\n")
    assert _tool("hadolint", tmp_path / "Dockerfile").returncode


def test_the_workflow_and_the_job_are_what_their_schemas_say(tmp_path: Path) -> None:
    commands: list[list[str | Path]] = [
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW],
        ["kubernetes-validate", "--strict", JOB],
    ]
    for words in commands:
        done = _tool(str(words[0]), *words[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "job.yaml").write_text(JOB.read_text().replace("parallelism", "parallellism"))
    assert _tool("kubernetes-validate", "--strict", tmp_path / "job.yaml").returncode


def _commands() -> Iterator[Any]:
    """Every command of ours in an example, by the file that has it."""
    for file in sorted(EXAMPLES.iterdir()):
        if not file.is_file():
            continue
        text = file.read_text().replace("\\\n", " ").replace("me/aot:build ", "aot ")
        for found in re.findall(rf"(?<![\w/:.-])aot ((?:{'|'.join(VERBS)}) .*)", text):
            yield pytest.param(re.split(r"\s&&\s|\"\]|;", found)[0].strip(), id=f"{file.name}: aot {found[:40]}")
    yield pytest.param(" ".join(_json_command(DEPLOY)[1:]), id="deploy.Dockerfile: CMD")


def _json_command(file: Path) -> list[str]:
    found: list[str] = json.loads(re.findall(r"^CMD (\[.*\])$", file.read_text(), re.MULTILINE)[-1])
    return found


@pytest.mark.parametrize("command", [*_commands()])
def test_every_command_of_an_example_is_one_with_options_that_it_has(command: str) -> None:
    verb, *words = shlex.split(command.replace("$((JOB_COMPLETION_INDEX + 1))", "1"))
    if words[:1] == ["--"]:
        words = [*words[1:], "--"]
    found = load(verb)
    found.make_context(verb, [*words])  # raises for an option that it has not, and for an argument that is missing
    if below := getattr(found, "commands", None):
        below[words[0]].make_context(words[0], words[1:])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.create(REPO)
        yield hub


@pytest.mark.compiles
def test_the_deploy_image_pulls_what_is_locked_and_serves_without_a_compiler(store: LocalStore, hub: Hub, tmp_path: Path) -> None:
    """The image's own commands, on this machine: what is pinned is pulled at build, and the program runs under `aot run --strict`."""
    program = Path(sys.executable).parent / "aot"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    network = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    lock = tmp_path / "aot.lock"
    builder = {**os.environ, **network, "PYTHONPATH": path, "AOT_HOME": str(store.root), "AOT_LOCK": str(lock)}
    for words in (["push", "pixart-alpha", f"hf://{REPO}"], ["lock", "pixart-alpha", "--from", f"hf://{REPO}", "--gpu", "cpu"]):
        done = subprocess.run([program, *words], env=builder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    text = DEPLOY.read_text()
    assert text.index("USER 65534") < text.index("aot pull"), "a store is its owner's alone"
    image = dict(word.split("=", 1) for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for word in line.split())
    image |= {"AOT_HOME": str(tmp_path / "image"), "AOT_LOCK": str(lock)}  # where the image has them
    bare = {"PATH": f"{tmp_path / 'bin'}", "PYTHONPATH": path, "HOME": str(tmp_path), **image}
    (tmp_path / "bin").mkdir()  # the image's path: python and aot, no compiler
    for name in ("aot", "python"):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {program.parent / name} "$@"\n')  # a link would not know its environment
        script.chmod(0o700)
    (pull,) = re.findall(r"^RUN .*(aot pull.*)$", text, re.MULTILINE)
    pulled = subprocess.run(
        [program, *shlex.split(pull.replace("h200", "cpu"))[1:]], env={**bare, **network}, capture_output=True, text=True
    )
    assert pulled.returncode == 0, pulled.stderr

    (tmp_path / "serve.py").write_text(PROGRAM)
    words = [str(tmp_path / "serve.py") if word == "/opt/serve.py" else word for word in _json_command(DEPLOY)]
    ran = subprocess.run([program, *words[1:]], env=bare, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "transformer" in ran.stderr


def test_the_workflows_secrets_are_handed_over_as_environment_and_never_in_a_command() -> None:
    found = yaml.safe_load(WORKFLOW.read_text())
    steps = [step for job in found["jobs"].values() for step in job["steps"]]
    assert not [step for step in steps if "secrets." in step.get("run", "")]


@pytest.mark.compiles
def test_a_replica_of_ray_serve_is_healthy_and_answers_with_a_picture(cached: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached
    from ray import serve

    for name, value in {"VARIANT": "tiny", "STEPS": "2", "GPUS": "0"}.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("scripts.examples.ray_serve", None)
    from scripts.examples import ray_serve

    handle = serve.run(ray_serve.app, _local_testing_mode=True)
    try:
        assert handle.picture.remote(seed=1, size="64x64").result(timeout_s=120)[:4] == b"\x89PNG"
        handle.check_health.remote().result(timeout_s=30)
    finally:
        serve.shutdown()
