"""What carrying and checking artifacts costs here: one run, ratios where there is something to compare with.

    python scripts/transport.py [--mib 300] [--artifacts 10000] [--json FILE]

Needs the test extra: the Hub it pulls from is the tests' own, on loopback, and its client the real one.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aot.artifact.key import Key
from aot.artifact.ledger import Ledger
from aot.artifact.opened import unpack
from aot.cache_store.digest import CHUNK, Digest
from aot.cache_store.errors import Corrupt, Untrusted
from aot.cache_store.layer import verify
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import FileEntry, Layer, Manifest
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import Ref
from aot.cache_store.trust import Admitted, Policy
from aot.serving.resolve import candidates
from aot.shipping.listing import listing
from aot.verbs.explain import explain
from tests.cache_store.hub_server import Hub

REPO = "acme/artifacts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=300)
    parser.add_argument("--artifacts", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aot-transport-") as folder:
        found = {
            "command": "python " + " ".join(sys.argv),
            "machine": {
                "cores": os.cpu_count(),
                "processor": platform.processor() or platform.machine(),
                "python": platform.python_version(),
            },
            "verify_and_materialise": loading(Path(folder), asked.mib),
            "pull": pulling(Path(folder), asked.mib),
            "refuse": refusing(Path(folder)),
            "many": many(Path(folder), asked.artifacts),
        }
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def artifact(store: LocalStore, folder: Path, mib: int) -> tuple[Ref, Manifest]:
    """Files of 16 MiB that compress to a half, as one layer of `mib` MiB unpacked; signed."""
    import zstandard

    layer_path, entries, offset = folder / "layer", [], 0
    with layer_path.open("wb") as target:
        for number in range(max(mib // 16, 1)):
            data = os.urandom(8 << 20).hex().encode()
            frame = zstandard.ZstdCompressor(level=3, write_checksum=False).compress(data)
            frame_entry = FileEntry(f"{number:04}.so", len(data), Digest.of(data), "graph", offset, len(frame))
            entries.append(frame_entry)
            target.write(frame)
            offset += len(frame)
    with layer_path.open("rb") as stream:
        layer = Layer("graph", "graph", offset, Digest.of_stream(stream))
    manifest = Manifest("big", {"part": str(mib)}, "2026-01-02T03:04:05Z", {}, (layer,), tuple(entries))
    raw = manifest.encode()
    store.commit(Ref.of(manifest), raw, {layer.digest: layer_path}, envelope=SigningKey.of_machine(store.root).sign(raw))
    layer_path.unlink()
    return Ref.of(manifest), manifest


def loading(folder: Path, mib: int) -> dict[str, Any]:
    """From an admitted manifest to files that can be mapped: on all cores, and on one."""
    store = LocalStore(folder / "loading")
    _, manifest = artifact(store, folder, mib)
    (layer,), admitted = manifest.layers, Admitted(Digest.of(manifest.encode()), manifest, by="the benchmark")

    def once() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as into:  # removed beside the clock
            return timed(lambda: unpack(store, admitted, layer=layer, into=Path(into), ledger=Ledger()))

    seconds = min(once() for _ in range(7))
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    alone = min(once() for _ in range(3))
    os.sched_setaffinity(0, whole)
    sizes = {"unpacked_mib": sum(entry.size for entry in manifest.files) >> 20, "packed_mib": layer.size >> 20}
    return {**sizes, "seconds": seconds, "seconds_on_one_core": alone}


CLIENT = """
import json, re, sys, time
from pathlib import Path
from huggingface_hub import HfApi
from aot.cache_store.hub import HubStore
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.transfer import pull, push
from aot.cache_store.trust import Admitted
endpoint, token, repo, what, home, ref = sys.argv[1:]
store = HubStore(repo, api=HfApi(endpoint=endpoint, token=token))
local = LocalStore(Path(home))
started = time.perf_counter()
if what == "push":
    from aot.cache_store.store import Ref
    push(Ref.parse(ref), source=local, target=store)
else:
    (entry,) = store.entries()
    raw = store.manifest(entry.digest)
    pull(Admitted(entry.digest, Manifest.parse(raw), by="the benchmark"), raw, store.envelope(entry.digest), source=store, local=local)
seconds = time.perf_counter() - started
# not getrusage's: that remembers the process which this one was forked from
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"seconds": seconds, "mib": int(peak[1]) / 1024}))
"""


def pulling(folder: Path, mib: int) -> dict[str, Any]:
    """A push and pulls over loopback, each in a process of its own, against curl to a file and sha256 of it."""
    store = LocalStore(folder / "builder")
    ref, manifest = artifact(store, folder, 2 * mib)
    (layer,) = manifest.layers
    with Hub(folder / "hub") as hub:
        hub.create(REPO)

        def client(what: str, home: Path) -> dict[str, float]:
            command = [sys.executable, "-c", CLIENT, hub.endpoint, hub.token, REPO, what, str(home), str(ref)]
            environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
            found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout)
            return found

        pushed = client("push", store.root)
        url = f"{hub.endpoint}/{REPO}/resolve/main/v1/blobs/{layer.digest.hex}"
        rounds = [
            (client("pull", folder / f"home-{number}"), timed(lambda number=number: _curl(url, hub.token, folder / f"curled-{number}")))
            for number in range(3)
        ]
    ours, curl = min(pulled["seconds"] for pulled, _ in rounds), min(seconds for _, seconds in rounds)
    return {
        "layer_mib": layer.size >> 20,
        "pull_s": ours,
        "curl_and_sha256_s": curl,
        "curl_over_pull": curl / ours,
        "pull_peak_mib": max(pulled["mib"] for pulled, _ in rounds),
        "push_peak_mib": pushed["mib"],
    }


def _curl(url: str, token: str, file: Path) -> None:
    subprocess.run(["curl", "-sfL", "-H", f"Authorization: Bearer {token}", "-o", str(file), url], check=True)
    with file.open("rb") as stream:
        state = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            state.update(chunk)


def refusing(folder: Path) -> dict[str, Any]:
    """From the question to the refusal, of an artifact that is unsigned, and of one whose layer is damaged at its end."""
    store, policy = LocalStore(folder / "refusing"), Policy()
    _, manifest = artifact(store, folder, 16)
    digest = Digest.of(manifest.encode())

    def untrusted() -> None:
        try:
            policy.admit(store.manifest(digest), digest, envelope=store.envelope(digest), origins=store.origins(digest))
        except Untrusted:
            return
        raise AssertionError("it was admitted")

    layer = manifest.layers[0]
    changed = replace(layer, digest=Digest.of(b"another"))

    def corrupt() -> None:
        try:
            with store.open_blob(layer.digest) as blob:
                verify(changed, blob)
        except Corrupt:
            return
        raise AssertionError("it was verified")

    return {"untrusted_ms": 1000 * min(timed(untrusted) for _ in range(5)), "corrupt_ms": 1000 * min(timed(corrupt) for _ in range(5))}


def _model(number: int) -> dict[str, str]:
    return {
        "class": f"diffusers.Model{number}",
        "dtype": "bfloat16",
        **{part: str(Digest.of(f"{part}{number}".encode())) for part in PARTS},
    }


def many(folder: Path, count: int) -> dict[str, Any]:
    """Listing and resolving in a store of many artifacts, of six models for eighteen GPUs, three torches and every size."""
    store = LocalStore(folder / "many")
    models = [_model(number) for number in range(6)]
    for number in range(count):
        model, sku, torch = models[number % 6], number // 6 % 18, number // 108 % 3
        parts = {f"component/transformer/{name}": value for name, value in model.items()}
        target = {**TARGET, "sku": f"GPU {sku}", "torch": f"2.1{3 + torch}.0"}
        key = {**parts, **{f"target.{name}": value for name, value in target.items()}, **SHARED, "shapes": f"{number}x{number}"}
        manifest = Manifest(f"model-{number % 6}", key, f"2026-01-02T03:04:{number % 60:02}Z", {}, (), ())
        raw, tree = manifest.encode(), store.root / "v1"
        # put in place without the fsyncs of a commit, which would take an hour here and measure something else
        (tree / "manifests" / Digest.of(raw).hex).write_bytes(raw)
        ref = Ref.of(manifest)
        (tree / "refs" / ref.name).mkdir(exist_ok=True, mode=0o700)
        (tree / "refs" / ref.name / ref.key.hex).write_text(f"{Digest.of(raw)}\n")
    time.sleep(2.1)  # an index does not trust a folder that has changed in the last two seconds
    first = timed(lambda: len(listing(store)))
    wish = {name.removeprefix("x"): value for name, value in key.items() if not name.startswith(("component/", "shapes"))}
    live = {"transformer": {name: models[0][name] for name in (*PARTS, "class", "dtype")}}
    asked = Key({**key, "shapes": "1024x1024"})
    stranger = {"transformer": {**live["transformer"], "fingerprint": str(Digest.of(b"nobody's"))}}
    return {
        "artifacts": count,
        "first_listing_s": first,
        "ls_ms": 1000 * min(timed(lambda: listing(store)) for _ in range(3)),
        "resolve_ms": 1000 * min(timed(lambda: candidates(store, modules=live, wish=wish)) for _ in range(3)),
        "explain_ms": 1000 * min(timed(lambda: explain(asked, store)) for _ in range(3)),
        "resolve_nothing_ms": 1000 * min(timed(lambda: candidates(store, modules=stranger, wish=wish)) for _ in range(3)),
        "index_mib": (store.root / "v1" / "index").stat().st_size >> 20,
    }


PARTS = ("config", "source", "fingerprint")
TARGET = {"device": "cuda", "arch": "sm_90", "system": "linux-x86_64", "diffusers": "0.42.1", "cuda": "13.2", "triton": "3.7.0"}
SHARED = {
    "recipe": "model",
    "variant": "full",
    "batch": "1",
    "guidance": "on",
    "frames": "",
    "dynamic": "false",
    "scope": "whole",
    "layers": "graph cache",
    "mode": "max-optimize:max-autotune:cache-all",
    "memory_format": "preserve",
    "options": "{}",
    "process.cudnn.benchmark": "false",
    "process.cudnn.allow_tf32": "true",
    "process.cuda.matmul.allow_tf32": "false",
    "signatures/transformer": "1 " + str(Digest.of(b"s")),
}


if __name__ == "__main__":
    main()
