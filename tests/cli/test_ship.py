"""From a build host to a fleet, by the commands a user types: real artifacts, our own Hub, the real client, the real CLI."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import aot
from aot.artifact.certificate import compare
from aot.building.build import Built
from aot.cache_store.local import LocalStore
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import read_manifest
from tests.cache_store.hub_server import Does, Fault, Hub
from tests.pixart import denoise, make_pipe

ROOT = Path(__file__).parents[2]
STORE = "hf://acme/artifacts"
# who moves artifacts waits for no torch, whose import is seconds
LIGHT = ("push", "pull", "lock", "lookup", "verify", "ls", "show", "trust")
WITHOUT_TORCH = "import atexit, sys, aot.cli.app; atexit.register(lambda: 'torch' in sys.modules and print('torch')); aot.cli.app.main()"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@dataclass
class Host:
    """A machine with a store of its own, on which a user types."""

    home: Path
    hub: Hub

    def run(self, *words: str, expect: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            *(("-c", WITHOUT_TORCH) if words[0] in LIGHT and "--exec" not in words else ("-m", "aot.cli.app")),
            *words,
        ]
        env = {
            **os.environ, "AOT_HOME": str(self.home), "HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.hub.token,
            "HF_HOME": str(self.home / "hf"), "PYTHONPATH": str(ROOT), **environ,
        }  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.home.parent)
        assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert not done.stdout.endswith("torch\n"), words
        return done

    def json(self, *words: str, **options: Any) -> Any:
        return json.loads(self.run(*words, "--json", **options).stdout)

    @property
    def key(self) -> str:
        return str(SigningKey.of_machine(self.home).public)


@pytest.fixture
def builder(store: LocalStore, hub: Hub) -> Host:
    """Where the session's artifact was built."""
    return Host(store.root, hub)


@pytest.fixture
def server(hub: Hub, tmp_path: Path) -> Host:
    """Where it is to be served."""
    (tmp_path / "server").mkdir()
    return Host(tmp_path / "server" / "home", hub)


@pytest.fixture
def pushed(builder: Host, hub: Hub) -> Iterator[str]:
    """The store that it was pushed to."""
    builder.run("push", "pixart-alpha", STORE, "--create")
    yield STORE
    hub.faults.clear()
    hub.repos.clear()


SERVE = """
import json, logging, tests.pixart as p, aot
from aot.artifact.certificate import compare
logging.basicConfig()
pipe = p.make_pipe()
expected = p.denoise(pipe)
aot.compile_pipe(pipe, on_miss="eager")
error = compare(p.denoise(pipe), expected).relative_l2
(ledger,) = aot.stats()
print(json.dumps({"error": error, "hits": sum(ledger["hits"].values()), "misses": list(ledger["misses"]), "seconds": ledger["seconds"]}))
"""


Loads: TypeAlias = Callable[..., tuple[int, str]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Loads:
    """Compiles a pipeline from a host's store in this process; how many calls its graphs served of one, and what was said."""

    def made(host: Host, **environ: str) -> tuple[int, str]:
        monkeypatch.chdir(host.home.parent)
        for name, value in {"AOT_HOME": str(host.home), "NEXFORT_GRAPH_CACHE": "1", **environ}.items():
            monkeypatch.setenv(name, value)
        caplog.clear()
        pipe = make_pipe()
        expected = denoise(pipe)
        with caplog.at_level(logging.WARNING, "aot"):
            aot.compile_pipe(pipe, on_miss="eager")
            assert compare(denoise(pipe), expected).relative_l2 <= 1e-5
        hits = sum(aot.stats()[-1]["hits"].values())
        aot.restore(pipe)
        return hits, caplog.text

    return made


def serve(host: Host, **environ: str) -> tuple[dict[str, Any], str]:
    env = {
        **os.environ,
        "AOT_HOME": str(host.home),
        "HF_ENDPOINT": host.hub.endpoint,
        "HF_TOKEN": host.hub.token,
        "PYTHONPATH": str(ROOT),
        **environ,
    }
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, env=env, cwd=host.home.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_four_verbs_carry_an_artifact_from_a_build_host_to_a_server(builder: Host, server: Host, pushed: str) -> None:
    (found,) = server.json("lookup", "pixart-alpha", pushed)
    assert found["loads"] is True
    refused = server.run("pull", "pixart-alpha", "--from", pushed, expect=11)
    assert "AOT-E207" in refused.stderr
    assert "aot trust add" in refused.stderr
    assert "aot lock" in refused.stderr
    server.run("trust", "add", builder.key, "--store", "hf://acme/*")
    server.hub.requests.clear()
    (pulled,) = server.json("pull", "pixart-alpha", "--from", pushed)
    asked = [
        request for request in server.hub.requests if "acme/artifacts" in request.path and "/blobs/" not in request.path and not request.cdn
    ]
    assert len(asked) <= 3, asked
    assert pulled["digest"] == found["digest"]
    said, _ = serve(server, NEXFORT_GRAPH_CACHE="1")
    assert said["hits"] == 1
    assert said["misses"] == []
    assert said["error"] <= 1e-5
    card = server.hub.read("acme/artifacts", "README.md").decode()
    for part in (
        "runs its author's code",
        "aot pull pixart-alpha",
        "relative L2",
        pulled["digest"].removeprefix("sha256:")[:12],
        "library_name: aot",
    ):
        assert part in card
    verified = server.json("verify", "pixart-alpha", "--exec")
    assert verified["trusted"].startswith("signed by machine-")
    assert verified["canary_error"] <= 1e-5


def test_a_server_pulls_at_first_use_what_it_trusts_and_goes_on_without_the_hub(builder: Host, server: Host, pushed: str) -> None:
    LocalStore(server.home)
    said, warned = serve(server, NEXFORT_GRAPH_CACHE=pushed)
    assert (said["hits"], said["error"]) == (0, 0)
    assert "AOT-E207" in warned
    assert list((server.home / "v1" / "blobs").iterdir()) == []
    server.run("trust", "add", builder.key)
    said, _ = serve(server, NEXFORT_GRAPH_CACHE=f"{pushed}@{server.hub.head('acme/artifacts')}")
    assert said["hits"] == 1
    assert "pull" in said["seconds"]
    said, warned = serve(server, NEXFORT_GRAPH_CACHE=pushed, HF_HUB_OFFLINE="1")
    assert said["hits"] == 1
    assert "HF_HUB_OFFLINE" in warned


def test_a_lock_pins_and_revoking_beats_it(builder: Host, server: Host, pushed: str, loads: Loads) -> None:
    (pinned,) = server.json("lock", "pixart-alpha", "--from", pushed)
    lock = server.home.parent / "aot.lock"
    assert server.hub.head("acme/artifacts") in lock.read_text()
    (pulled,) = server.json("pull")
    assert pulled["trusted"] == "pinned in the lock file"
    assert loads(server)[0] == 1
    away = lock.rename(lock.with_suffix(".away"))
    assert loads(server)[0] == 0
    assert loads(server, AOT_LOCK=str(away))[0] == 1
    server.run("trust", "revoke", pinned["digest"])
    hits, said = loads(server, AOT_LOCK=str(away))
    assert hits == 0
    assert "revoked" in said


def test_a_revoked_key_is_refused_at_the_next_load(builder: Host, server: Host, pushed: str, loads: Loads) -> None:
    server.run("trust", "add", builder.key)
    server.run("pull", "pixart-alpha", "--from", pushed)
    assert loads(server)[0] == 1
    server.run("trust", "revoke", builder.key)
    hits, said = loads(server)
    assert hits == 0
    assert "revoked" in said
    assert "revoked" in server.run("pull", "pixart-alpha", "--from", pushed, expect=11).stderr
    server.run("trust", "add", builder.key, expect=2)


def test_a_second_signature_reaches_the_threshold(builder: Host, server: Host, pushed: str, tmp_path: Path) -> None:
    second = SigningKey.of_machine(tmp_path / "second")
    server.run("trust", "add", builder.key, str(second.public), "--threshold", "2")
    assert "1 of the 2" in server.run("pull", "pixart-alpha", "--from", pushed, expect=11).stderr
    builder.run("push", "pixart-alpha", pushed, AOT_SIGNING_KEY=str(tmp_path / "second" / "keys" / "machine.pem"))
    server.run("pull", "pixart-alpha", "--from", pushed)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("pull", "pixart-alpha"), 2, "--from"),
        (("pull",), 2, "pins nothing"),
        (("pull", "pixart-alpha", "--from", "hf://acme"), 2, "hf://ORG/REPO"),
        (("pull", "pixart-alpha", "--from", "nosuch://x"), 2, "nosuch"),
        (("pull", "pixart-alpha", "--from", "hf://acme/nowhere"), 6, "no such repository"),
        (("pull", "pixart-alpha", "--from", f"{STORE}@v9"), 6, "no such revision"),
        (("pull", "sdxl", "--from", STORE), 6, "it has: pixart-alpha"),
        (("pull", "pixart-alpha", "--from", STORE, "--gpu", "h200"), 10, "device"),
        (("pull", "pixart-alpha", "--from", STORE, "--mode", "O3"), 10, "mode is"),
        (("pull", "pixart-alpha", "--from", STORE, "--variant", "full"), 10, "variant is tiny"),
        (("pull", "pixart-alpha", "--from", STORE, "--gpu", "gtx-1080"), 2, "gtx-1080"),
        (("lookup", "pixart-alpha", "hf://acme/nowhere"), 6, "no such repository"),
        (("push", "sdxl", STORE), 6, "sdxl"),
        (("push", "pixart-alpha", "hf://acme/nowhere"), 6, "no such repository"),
        (("push", "pixart-alpha", f"{STORE}@{'0' * 40}"), 2, "cannot be written"),
        (("push", "pixart-alpha", STORE, "--public"), 2, "--create"),
        (("lock", "pixart-alpha"), 2, "--from"),
        (("trust", "add", "ssh-ed25519 AAAA"), 2, "aot-ed25519:NAME:BASE64"),
        (("trust", "revoke", "nobody"), 2, "no listed key"),
        (("verify", "nothing"), 6, "nothing"),
        (("fsck", "hf://acme/nowhere"), 6, "no such repository"),
    ],
)
def test_wrong_input_is_named_with_the_remedy_and_a_stable_code(
    builder: Host, pushed: str, words: tuple[str, ...], code: int, says: str
) -> None:
    said = builder.run(*words, expect=code).stderr
    assert says in said
    assert "fix:" in said


def test_tokens_gates_and_quotas_are_told(builder: Host, server: Host, pushed: str, hub: Hub) -> None:
    assert "HF_TOKEN" in builder.run("push", "pixart-alpha", pushed, expect=12, HF_TOKEN=hub.read_token).stderr
    assert "HF_TOKEN" in server.run("lookup", "pixart-alpha", pushed, expect=6, HF_TOKEN=hub.stranger_token).stderr
    hub.create("acme/gated", gated=True)
    assert "gated" in server.run("lookup", "pixart-alpha", "hf://acme/gated", expect=12, HF_TOKEN=hub.stranger_token).stderr
    assert "HF_HUB_OFFLINE" in server.run("lookup", "pixart-alpha", pushed, expect=8, HF_HUB_OFFLINE="1").stderr


def test_a_flipped_bit_on_the_server_is_refused_and_a_later_pull_is_sound(
    builder: Host, server: Host, pushed: str, hub: Hub, loads: Loads
) -> None:
    server.run("trust", "add", builder.key)
    hub.faults.add(Fault("GET", "^/cdn/", Does.FLIP_BIT, times=-1))
    assert "AOT-E203" in server.run("pull", "pixart-alpha", "--from", pushed, expect=7).stderr
    assert server.json("ls") == []
    hub.faults.clear()
    server.run("pull", "pixart-alpha", "--from", pushed)
    assert loads(server)[0] == 1


def damage(host: Host) -> None:
    store = LocalStore(host.home)
    ((_, digest),) = store.refs()
    path = store.blob_path(read_manifest(store, digest).layers[0].digest)
    assert path
    path.chmod(0o600)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("remedy", [("fsck", "--repair"), ("pull", "pixart-alpha", "--from", STORE, "--repair")])
def test_damage_here_is_found_and_mended_from_where_it_was_pulled(
    builder: Host, server: Host, pushed: str, loads: Loads, remedy: tuple[str, ...]
) -> None:
    server.run("trust", "add", builder.key)
    server.run("pull", "pixart-alpha", "--from", pushed)
    server.run("fsck")
    damage(server)
    assert "sha256 mismatch" in server.run("fsck", expect=7).stdout
    assert "AOT-E203" in server.run("verify", "pixart-alpha", expect=7).stderr
    server.run(*remedy)
    server.run("fsck")
    assert loads(server)[0] == 1


def test_a_damaged_list_of_a_repository_is_told_and_made_anew(builder: Host, pushed: str, hub: Hub) -> None:
    builder.run("fsck", pushed)
    hub.write("acme/artifacts", "v1/index.json", b"{}")
    assert "list of artifacts" in builder.run("lookup", "pixart-alpha", pushed, expect=7).stderr
    builder.run("fsck", pushed, "--repair")
    assert len(builder.json("lookup", "pixart-alpha", pushed)) == 1


def test_a_shared_folder_serves_like_the_hub(builder: Host, server: Host, tmp_path: Path, loads: Loads) -> None:
    share = f"file://{tmp_path}/share"
    builder.run("push", "pixart-alpha", share)
    server.run("trust", "add", builder.key, "--store", f"file://{tmp_path}/*")
    assert server.json("lookup", "pixart-alpha", share)[0]["loads"] is True
    server.run("pull", "pixart-alpha", "--from", share)
    assert loads(server)[0] == 1


def test_building_and_listing_show_who_signed(builder: Host, built: tuple[LocalStore, Built]) -> None:
    assert builder.key in builder.run("trust", "ls").stderr
    shown = builder.json("show", "pixart-alpha")
    assert shown["signed_by"] == [SigningKey.of_machine(builder.home).public.id]
    assert shown["digest"] == str(built[1].digest)
