"""What a long list of artifacts costs on the Hub: seconds and bytes of a lookup, a push and a listing of everything.

    python scripts/long_list.py [--counts 1000,10000,100000] [--json FILE]

Artifacts are made up, a thousand of each name, with keys and figures as long as those of two components. Needs the test extra: the Hub
is the tests' own, on loopback, and its client the real one. Bytes are those of the loopback device, in one direction.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from huggingface_hub import HfApi

from aot.cache_store.digest import Digest
from aot.cache_store.hub import HubStore
from aot.cache_store.hub_list import HubList
from aot.cache_store.hub_reader import HubReader
from aot.cache_store.listed import Listed
from aot.cache_store.manifest import Manifest
from aot.cache_store.store import Entry, Ref
from aot.shipping.card import render
from tests.artifacts import packed
from tests.cache_store.hub_server import Hub

REPO = "acme/many"
OF_A_NAME = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    found["lists"] = {count: measured(int(count)) for count in asked.counts.split(",")}
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aot-list-") as folder, Hub(Path(folder) / "hub") as hub:
        hub.create(REPO)
        entries = list(made(count))
        one_file = len(Listed(tuple(entries)).encode())
        reader = HubReader(REPO, "main", api=HfApi(endpoint=hub.endpoint, token=hub.token), location=REPO)
        for path, data in HubList(reader).anew(entries, 1).files.items():
            hub.write(REPO, path, data)
        name = entries[0].ref.name

        def store() -> HubStore:
            found = HubStore(REPO, api=HfApi(endpoint=hub.endpoint, token=hub.token))
            found.card = lambda entries, count: render(entries, found.location, count)
            return found

        def lookup() -> None:
            found = [entry for entry in store().entries(within={"recipe": name}) if entry.ref.name == name]
            assert len(found) >= min(count, OF_A_NAME)

        layer, files, blob = packed(Path(folder), {"a.bin": b"x"})
        example = entries[0]
        key = {**example.key, "shapes": "pushed"}
        manifest = Manifest(name, key, example.created, {}, (layer,), tuple(files), dict(example.measured), dict(example.certificate))

        def push() -> None:
            store().commit(Ref.of(manifest), manifest.encode(), {layer.digest: blob})

        def everything() -> None:
            assert len(list(store().entries())) == count + 1

        return {
            "one_file_mb": round(one_file / 1e6, 1),
            "lookup": cost(lookup),
            "push": cost(push),
            "everything": cost(everything),
        }


def made(count: int) -> Iterator[Entry]:
    """Artifacts of a thousand a name: what their keys have in common is as it is in a fleet."""
    for number in range(count):
        name = f"model-{number // OF_A_NAME:03}"
        key = {
            "recipe": name,
            "variant": "full",
            "scope": "regional",
            "layers": "graph",
            "tuning": "heuristics",
            "mode": "max-optimize:max-autotune:cache-all",
            "memory_format": "preserve",
            "options": "{}",
            "shapes": f"{number}x{number}",
            **{f"process.{part}": "true" for part in ("cuda.matmul.allow_tf32", "cudnn.allow_tf32", "cudnn.benchmark")},
            **{f"target.{part}": "a value" for part in ("device", "sku", "torch", "diffusers", "system", "arch", "triton", "cuda")},
        }
        for path in ("transformer", "vae.decoder"):
            key |= {
                f"component/{path}/{part}": str(Digest.of(f"{name}{path}{part}".encode())) for part in ("config", "fingerprint", "source")
            }
            key[f"signatures/{path}"] = str(Digest.of(f"{number}".encode()))
        calls = [
            {"call": f"{path} float32[{number}]", "max_abs": 1e-6, "relative_l2": 2e-7, "psnr": 140.0} for path in ("transformer", "vae")
        ]
        measured = {"compile_s": {f"transformer-{place}.so": 20.0 + number for place in range(4)}, "memory": {"peak_bytes": 3 << 30}}
        created = f"2026-{1 + number % 12:02}-{1 + number // 12 % 28:02}T00:00:00Z"
        ref = Ref(name, Digest.of(f"{number}".encode()))
        yield Entry(ref, Digest.of(f"m{number}".encode()), created, 1, key, {"aot": "0"}, measured, {"calls": calls}, ("a" * 64,))


def cost(act: Callable[[], None]) -> dict[str, float]:
    """Seconds, and megabytes that moved."""
    before, started = moved(), time.perf_counter()
    act()
    return {"s": round(time.perf_counter() - started, 2), "mb": round((moved() - before) / 1e6, 2)}


def moved() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


if __name__ == "__main__":
    main()
