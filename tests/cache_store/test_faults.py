"""What a store goes through and keeps its promise: a ref leads to a manifest, a manifest to every layer, byte for byte.

The numbers are scaled for CI; `scripts/faults.sh` runs them in full (`AOT_FAULTS=full`).
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aot.artifact.ledger import Ledger
from aot.artifact.opened import unpack
from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Malformed, StoreFull, Untrusted
from aot.cache_store.layer import materialise, verify
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.memory import MemoryStore
from aot.cache_store.prune import prune
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import Ref
from aot.cache_store.transfer import push
from aot.cache_store.trust import Policy, Rule, Trust
from tests.artifacts import admitted, bring, packed, small
from tests.cache_store.faults import ERRNOS, Countdown, faulty, killed_at, refuse, sometimes
from tests.cache_store.hub_server import Hub
from tests.cache_store.test_local import check_invariant

FULL = os.environ.get("AOT_FAULTS") == "full"
ROOT = Path(__file__).parents[2]


def scaled(ci: int, full: int) -> int:
    return full if FULL else ci


def told(name: str, value: object) -> None:
    """A figure for the table of SECURITY.md; `pytest -s` shows it."""
    sys.stdout.write(f"\nfaults: {name}: {value}\n")


def signed(folder: Path, **what: str) -> tuple[MemoryStore, Ref, Manifest, Digest, SigningKey]:
    """A remote with one signed artifact."""
    remote, key = MemoryStore("memory://remote"), SigningKey.of_machine(folder)
    ref, manifest, blobs = small(folder, **what)
    raw = manifest.encode()
    return remote, ref, manifest, remote.commit(ref, raw, blobs, envelope=key.sign(raw)), key


def noise(size: int) -> str:
    return random.Random(0).randbytes(size).hex()


def test_every_byte_of_an_artifact_flipped_is_refused(tmp_path: Path) -> None:
    """Manifest, signatures and layer, each byte with one bit of it turned: none is admitted and materialised."""
    remote, _, manifest, digest, key = signed(tmp_path, text=noise(scaled(3_000, 90_000)))
    policy, (layer,) = Policy(Trust((Rule((key.public,)),))), manifest.layers
    chance, accepted, trials = random.Random(1), 0, 0
    parts = {
        "manifest": bytearray(remote.manifests[digest]),
        "envelope": bytearray(remote.envelopes[digest]),
        "blob": bytearray(remote.blobs[layer.digest]),
    }
    for data in parts.values():
        for place in range(len(data)):
            bit = 1 << chance.randrange(8)
            data[place] ^= bit
            with contextlib.suppress(Corrupt, Untrusted):
                found = policy.admit(bytes(parts["manifest"]), digest, envelope=bytes(parts["envelope"]), origins=["memory://remote"])
                verify(found.manifest.layers[0], io.BytesIO(parts["blob"]))
                accepted += 1
            data[place] ^= bit
            trials += 1
    told("bytes flipped, accepted", f"{trials}, {accepted}")
    assert accepted == 0


def test_a_manifest_cut_at_every_length_is_refused(tmp_path: Path) -> None:
    remote, _, _, digest, key = signed(tmp_path)
    raw, envelope = remote.manifests[digest], remote.envelopes[digest]
    policy = Policy(Trust((Rule((key.public,)),)))
    for length in range(len(raw)):
        with pytest.raises(Corrupt):
            policy.admit(raw[:length], digest, envelope=envelope, origins=["memory://remote"])
        with pytest.raises(Untrusted):
            policy.admit(raw[:length], Digest.of(raw[:length]), envelope=envelope, origins=["memory://remote"])
        with pytest.raises(Malformed):
            Manifest.parse(raw[:length])
    told("lengths a manifest was cut at", len(raw))


JUNK = [None, True, 0, -1, 1 << 70, 1.5, "", "x", "\ud800", [], {}, [[]], {"": 0}, "sha256:" + "0" * 64, "../x", "a" * 300]


def mutated(chance: random.Random, value: object) -> object:
    """The value with one thing in it replaced, dropped, doubled or added."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutated(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        if chance.random() < 0.2:
            return [*value, value[place]]
        return [mutated(chance, item) if index == place else item for index, item in enumerate(value)]
    return chance.choice(JUNK)


def test_ten_thousand_generated_manifests_raise_only_malformed(tmp_path: Path) -> None:
    _, manifest, _ = small(tmp_path)
    chance, parsed = random.Random(2), 0
    for _ in range(10_000):
        value: object = json.loads(manifest.encode())
        for _ in range(chance.randrange(1, 4)):
            value = mutated(chance, value)
        raw = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        if chance.random() < 0.2:
            place = chance.randrange(len(raw))
            raw = raw[:place] + chance.randbytes(1) + raw[place + 1 :]
        with contextlib.suppress(Malformed):
            Manifest.parse(raw)
            parsed += 1
    assert 0 < parsed < 5_000
    told("generated manifests, untyped errors", "10,000, 0")


PIECES = [
    "..",
    ".",
    "",
    "a/..",
    "../a",
    "/etc",
    "//",
    "a//b",
    "a/./b",
    "a\\..\\b",
    "~",
    "~root",
    "C:",
    "nul\0",
    "a\nb",
    "é",
    "\u202e",
    "%2e%2e",
    "a b",
    "-",
    "*",
]
HOSTILE = sorted(
    {f"{left}/{right}" for left in PIECES for right in ("x", "../../x", "passwd", "")}
    | {f"x/{piece}/y" for piece in PIECES}
    | {piece for piece in PIECES if piece != "-"}
    | {"x/" * depth + "../" * (depth + 1) + "y" for depth in range(1, 60)}
    | {"../" * depth + "etc/passwd" for depth in range(1, 40)} | {"a" * 241, "a/" * 121 + "a"}
)  # fmt: skip


def test_hostile_paths_write_nothing_outside(tmp_path: Path) -> None:
    """Refused in a manifest; and where one is made by hand, nothing appears outside the directory."""
    layer, (entry, *_), blob = packed(tmp_path, {"x": b"content"})
    refused = 0
    for path in HOSTILE:
        raw = Manifest("small", {"part": "x"}, "2026-01-02T03:04:05Z", {}, (layer,), (entry,)).encode()
        with contextlib.suppress(Malformed):
            Manifest.parse(raw.replace(b'"path":"x"', b'"path":' + json.dumps(path).encode()))
            continue
        refused += 1
    assert len(HOSTILE) >= 200
    harmless = [path for path in HOSTILE if path in ("-/x", "-/passwd", "x/-/y")]
    assert refused == len(HOSTILE) - len(harmless)
    before = sorted(tmp_path.iterdir())
    with blob.open("rb") as stream:
        materialise(layer, files=[entry], blob=stream, into=tmp_path / "graph-files")
    assert sorted(tmp_path.iterdir()) == before
    told("hostile paths, written outside", f"{len(HOSTILE)}, 0")


def pull_work(remote: MemoryStore, manifest: Manifest, home: Path) -> Callable[[], None]:
    return lambda: bring(manifest, remote, LocalStore(home)) and None


def load_work(home: Path, digest: Digest, into: Path) -> Callable[[], None]:
    def work() -> None:
        store = LocalStore(home)
        found = admitted(store, digest)
        unpack(store, found, layer=found.manifest.layers[0], into=into, ledger=Ledger())

    return work


def prune_work(home: Path) -> Callable[[], None]:
    return lambda: prune(LocalStore(home), now=datetime.now(UTC), older_than=timedelta.min) and None


def prepared(kind: str, folder: Path, home: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """The work of that kind on a fresh home, and what must succeed afterwards, unaided."""
    folder.mkdir()
    remote, ref, manifest, digest, key = signed(folder)
    again = pull_work(remote, manifest, home)
    if kind == "pull":
        work = again
    else:
        again()
        Trust((Rule((key.public,)),)).write(home)
        work = load_work(home, digest, folder / "run") if kind == "load" else prune_work(home)

    def afterwards() -> None:
        check_invariant(LocalStore(home))
        again()
        check_invariant(LocalStore(home))
        assert LocalStore(home).resolve(ref) == digest

    return work, afterwards


@pytest.mark.parametrize("kind", ["pull", "load", "prune"])
def test_a_kill_before_any_file_operation_leaves_all_or_nothing(tmp_path: Path, kind: str) -> None:
    """Before the n-th is after the one before it: every point between two operations is met."""
    for at in range(1, 500):
        home = tmp_path / f"home-{at}"
        work, afterwards = prepared(kind, tmp_path / f"work-{at}", home)
        died = killed_at(at, tmp_path, work)
        afterwards()
        if not died:
            told(f"kill -9 at every file operation of {kind}", at - 1)
            assert at > 10
            return
    pytest.fail("it never ran to its end")


@pytest.mark.parametrize("code", ERRNOS)
@pytest.mark.parametrize("kind", ["pull", "load", "prune"])
def test_an_error_at_any_file_operation_is_a_typed_error_and_leaves_all_or_nothing(tmp_path: Path, kind: str, code: int) -> None:
    for at in range(1, 500):
        home = tmp_path / f"home-{at}"
        work, afterwards = prepared(kind, tmp_path / f"work-{at}", home)
        countdown = Countdown(at, refuse(code))
        with faulty(tmp_path, countdown), contextlib.suppress(CodedError):
            work()
        afterwards()
        if countdown.count < at:
            told(f"{os.strerror(code)} at every file operation of {kind}", at - 1)
            assert at > 10
            return
    pytest.fail("it never ran to its end")


def test_a_disk_that_fills_while_a_layer_is_written_is_told_and_the_next_pull_succeeds(tmp_path: Path) -> None:
    remote, ref, manifest, digest, _ = signed(tmp_path, text=noise(50_000))
    home = tmp_path / "home"
    LocalStore(home)

    def child(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            bring(manifest, remote, LocalStore(home))
        except StoreFull:
            os._exit(7)
        os._exit(0)

    for limit in (0, 1, 100, 5_000, 20_000, 40_000):
        process = multiprocessing.get_context("fork").Process(target=child, args=(limit,))
        process.start()
        process.join(60)
        assert process.exitcode == 7, limit
        check_invariant(LocalStore(home))
        assert LocalStore(home).resolve(ref) is None
    bring(manifest, remote, LocalStore(home))
    assert LocalStore(home).resolve(ref) == digest


def test_many_pulls_at_once_download_each_layer_once(tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    from aot.cache_store.hub import HubStore

    local = LocalStore(tmp_path / "builder")
    ref, manifest, blobs = small(tmp_path, text=noise(100_000))
    local.commit(ref, manifest.encode(), blobs)
    with Hub(tmp_path / "hub") as hub:
        hub.create("acme/artifacts")
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        push(ref, source=local, target=HubStore("acme/artifacts", api=api))
        hub.requests.clear()

        def child() -> None:
            bring(manifest, HubStore("acme/artifacts", api=api), LocalStore(tmp_path / "home"))
            os._exit(0)

        children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(scaled(20, 100))]
        for process in children:
            process.start()
        for process in children:
            process.join(120)
        assert {process.exitcode for process in children} == {0}
        downloads = [request for request in hub.requests if request.cdn]
    told(f"downloads of one layer by {len(children)} processes at once", len(downloads))
    assert len(downloads) == 1
    check_invariant(LocalStore(tmp_path / "home"))


def test_a_long_life_with_faults_never_breaks_the_store(tmp_path: Path) -> None:
    """Commits, pulls, loads and prunes on one store, one file operation in a hundred failing."""
    chance, home, cycles = random.Random(3), tmp_path / "home", scaled(300, 10_000)
    LocalStore(home)
    works: list[Callable[[], None]] = [prune_work(home)]
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        remote, _, manifest, digest, key = signed(folder, key=str(number), text=noise(100 * number))
        Trust.read(home).add(Rule((key.public,))).write(home)
        works += [pull_work(remote, manifest, home)] * 3 + [load_work(home, digest, folder / "run")] * 3
    failed = 0
    for cycle in range(cycles):
        try:
            with faulty(tmp_path, sometimes(chance, 0.01, refuse(chance.choice(ERRNOS)))):
                chance.choice(works)()
        except CodedError:
            failed += 1
        if cycle % 50 == 0:
            check_invariant(LocalStore(home))
    check_invariant(LocalStore(home))
    told("cycles with one fault in a hundred operations, cycles that failed, broken invariants", f"{cycles}, {failed}, 0")
    assert failed


def test_random_kills_of_the_real_command_leave_nothing_broken(tmp_path: Path) -> None:
    folder, home, share = tmp_path / "work", tmp_path / "home", f"file://{tmp_path}/share"
    folder.mkdir()
    from aot.cache_store.location import open_store

    local = LocalStore(tmp_path / "builder")
    ref, manifest, blobs = small(folder, text=noise(2_000_000))
    target = {
        "target.device": "cpu",
        "target.sku": "x86-64-v1",
        "target.system": "linux-x86_64",
        "target.torch": "2.15.0",
        "target.diffusers": "1",
    }
    manifest = Manifest(manifest.name, {"mode": "cache-all", **target}, manifest.created, {}, manifest.layers, manifest.files)
    ref, raw, key = Ref.of(manifest), manifest.encode(), SigningKey.of_machine(folder)
    local.commit(ref, raw, blobs, envelope=key.sign(raw))
    push(ref, source=local, target=open_store(share))
    LocalStore(home)
    from aot.cache_store.lock import Lock, Pin

    Lock((Pin(share, ref, Digest.of(raw)),)).write(tmp_path / "aot.lock")
    environ = {**os.environ, "AOT_HOME": str(home), "AOT_LOCK": str(tmp_path / "aot.lock"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PULL_PINS]
    chance, died = random.Random(4), 0
    started = time.monotonic()
    subprocess.run(command, check=True, env=environ, capture_output=True)
    whole = time.monotonic() - started
    for _ in range(scaled(8, 500)):
        prune_work(home)()
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * chance.uniform(0.3, 1.1))
        process.kill()
        died += process.wait() != 0
        check_invariant(LocalStore(home))
    subprocess.run(command, check=True, env=environ, capture_output=True)
    assert LocalStore(home).resolve(ref) == Digest.of(raw)
    told("random kills of aot pull, of them in time, broken invariants", f"{scaled(8, 500)}, {died}, 0")
    assert died


# `aot pull` of what is pinned, for a machine that it fits: what differs between machines is not what is tested here
PULL_PINS = """
import sys
from aot.verbs import stores
from aot.verbs.pull import pull
import aot.machine.target
aot.machine.target.Target.check = lambda self, other, also=(): []
stores._detected = lambda device: None
assert pull()
"""
