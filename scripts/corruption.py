"""Damage the files that compiled code is loaded from, one fault a trial, and count what becomes of the call that needs them.

    python scripts/corruption.py --faults 1720 --json corruption.json

`torch`: torch alone, loading its own compiler caches from a damaged directory, a damaged `save_cache_artifacts` blob (the
directory then holds the compiled kernels and nothing else) or a damaged AOTInductor package. `aot`: a local store, its files
damaged as they lie there (`stored`); and the files inside its layers damaged as torch's are, then packed again under the same
manifest (`packed`). What is not served falls back to eager; once in a hundred trials to the compiler (`compiled`).

Every trial is a fork of one process that has imported torch and compiled nothing. `ok`: the right numbers, whoever computed
them. `wrong`: others, by a relative L2 of more than 1e-4. `signal`: the process died. `exception`: one reached the caller.
`hang`: none of it within 90 seconds. For aot also: `said` by a warning with a code; `served` by the artifact all the same;
`silent` when neither. Exits 1 when anything but `ok` came through aot.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import zstandard
from corruption_faults import DEADLINE, OUTCOMES, Answer, Corpus, Files, Target, as_a_user, as_text, in_fork, read, write
from torch import nn

import aot
from aot.building.build import build
from aot.cache_store.local import LocalStore
from aot.environment import GRAPH_CACHE
from aot.machine.target import Target as Machine
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request
from aot.request.shape import Shape

# A process with threads or a GPU cannot be forked. Numeric libraries make threads when they are imported, torch its compile
# workers; those of OpenMP are made by the first computation that needs them, which will be in a fork.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

_KINDS = {
    "fxgraph/*": "FX graph entry",
    "aotautograd/*": "AOTAutograd entry",
    "*.main.so": "kernel .so",
    "*.main.cpp": "kernel .cpp",
    "*.py": "wrapper .py",
    "*/*.cpp": "CPU probe",  # with which Inductor finds out which instructions the CPU has
    "*/*.so*": "CPU probe",
    "*.so": "AOTI library",
}


def kind_of(path: str) -> str:
    """What a file of Inductor's cache directory or of a layer is."""
    return next((kind for pattern, kind in _KINDS.items() if fnmatch(path, pattern)), path)


def by_kind(files: Files) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(files):
        found.setdefault(kind_of(path), []).append(path)
    return found


def prepare(modules: Sequence[str]) -> None:
    """Do before the forks what does not depend on a trial: or each would import the compiler, and hash all of torch and triton."""
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    torch._inductor.codecache.CacheBase.get_system()
    torch._inductor.codecache.torch_key()


def torch_corpus(work: Path) -> Corpus:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.Softmax(-1)).eval()  # two kernels and two matrix products
    x = torch.randn(32, 64)
    with torch.no_grad():
        expected = model(x)
    made = in_fork(partial(as_a_user, work, partial(_make, model, x)), seconds=10 * DEADLINE)
    if made.outcome != "ok":
        raise SystemExit(f"torch alone could not compile: {made.detail}")
    prepare(made.answer["modules"])
    cache = {path: data for path, data in read(work / "cache").items() if not path.startswith("locks/")}
    kept = {path: data for path, data in cache.items() if kind_of(path) in ("kernel .so", "kernel .cpp", "CPU probe")}
    blob, package = ({name: (work / name).read_bytes()} for name in ("blob", "small.pt2"))
    from_directory = partial(_from_directory, model, x)
    targets = [Target(kind, cache, paths, from_directory) for kind, paths in by_kind(cache).items()]
    targets.append(Target("save_cache_artifacts", blob, list(blob), partial(_from_blob, model, x, kept)))
    targets.append(Target("AOTInductor package", package, list(package), partial(_from_package, x)))
    return Corpus("torch", work, expected, targets)


def _make(model: nn.Module, x: torch.Tensor, work: Path) -> Answer:
    _from_directory(model, x, {}, work)
    (work / "blob").write_bytes(torch.compiler.save_cache_artifacts()[0])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "package")
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path=str(work / "small.pt2"))
    return {"modules": sorted(name for name, module in sys.modules.items() if getattr(module, "__spec__", None))}


def _from_directory(model: nn.Module, x: torch.Tensor, files: Files, directory: Path) -> Answer:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(write(files, directory / "cache"))
    torch._inductor.config.cpp_cache_precompile_headers = False  # half a second a trial
    with torch.no_grad():
        return {"output": as_text(torch.compile(model, dynamic=False)(x))}


def _from_blob(model: nn.Module, x: torch.Tensor, kept: Files, files: Files, directory: Path) -> Answer:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory / "cache")
    if "blob" in files:
        torch.compiler.load_cache_artifacts(files["blob"])
    return _from_directory(model, x, kept, directory)


def _from_package(x: torch.Tensor, files: Files, directory: Path) -> Answer:
    return {"output": as_text(torch._inductor.aoti_load_package(str(write(files, directory) / "small.pt2"))(x))}


class Stored:
    """An artifact of a local store, and a call that it serves."""

    def __init__(self, home: Path) -> None:
        passing = ("logs", "toolchain", "canary", "v1/locks", "v1/tmp", "v1/quarantine")
        self.files = {path: data for path, data in read(home).items() if not path.startswith(passing)}
        (raw,) = (data for path, data in self.files.items() if path.startswith("v1/manifests/"))
        manifest = json.loads(raw)
        self.blobs = {layer["kind"]: f"v1/blobs/{layer['sha256']}" for layer in manifest["layers"]}
        self.frames: dict[str, dict[str, bytes]] = {kind: {} for kind in self.blobs}
        self.unpacked: dict[str, dict[str, bytes]] = {kind: {} for kind in self.blobs}
        for entry in manifest["files"]:
            path, kind, offset = entry["path"], entry["layer"], entry["offset"]
            self.frames[kind][path] = frame = self.files[self.blobs[kind]][offset : offset + entry["length"]]
            self.unpacked[kind][path] = zstandard.decompress(frame, max_output_size=entry["size"])
        recipe = find("pixart-alpha")
        torch.manual_seed(0)
        self.model = recipe.pipeline(recipe.variant("tiny"), dtype="float32", weights=None).transformer
        self.call = {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "encoder_hidden_states": torch.randn(2, 120, 32),
            "encoder_attention_mask": torch.ones(2, 120, dtype=torch.int64),
            "timestep": torch.tensor([7]).expand(2),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "return_dict": False,
        }

    def packed(self, kind: str, files: Files) -> bytes:
        """The layer with `files` in it, in its order; those that are what they were keep their bytes."""
        before = self.unpacked[kind]
        kept = {path: frame for path, frame in self.frames[kind].items() if files.get(path) == before[path]}
        return b"".join(kept.get(path) or zstandard.compress(files[path]) for path in before if path in files)

    def run(self, files: Files, directory: Path, *, on_miss: str = "eager", held: bool = False) -> Answer:
        """What a user does, and what was said and counted meanwhile.

        `held`: nothing is compiled as long as nothing came into the directory that the compiler loads from. Compiling takes
        twenty seconds, and without a file from the artifact it is torch's own affair.
        """
        said: list[str] = []
        listener = logging.Handler(logging.WARNING)
        listener.emit = lambda record: said.append(record.getMessage().replace(str(directory), ""))  # type: ignore[method-assign]
        logging.getLogger("aot").addHandler(listener)
        home, cache = write(files, directory / "home"), directory / "inductor"
        os.environ |= {"AOT_HOME": str(home), GRAPH_CACHE: "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        aot.compile(self.model, on_miss=on_miss)
        warm = bool(read(cache))
        with torch.no_grad(), torch.compiler.set_stance("force_eager" if held and not warm else "default"):
            (output,) = self.model(**self.call)
        served = any(hits for ledger in aot.stats() for hits in ledger["hits"].values())
        return {"output": as_text(output), "said": said, "served": served or warm}

    def run_graph(self, on_miss: str, files: Files, directory: Path) -> Answer:
        """The same with `files` as the content of the graph layer."""
        return self.run({**self.files, self.blobs["graph"]: self.packed("graph", files)}, directory, on_miss=on_miss)

    def run_cache(self, held: bool, files: Files, directory: Path) -> Answer:
        """The same with `files` as the content of the cache layer; without the graphs, so that it is what serves. That is no fault."""
        home = {path: data for path, data in self.files.items() if path != self.blobs["graph"]}
        return self.run({**home, self.blobs["cache"]: self.packed("cache", files)}, directory, on_miss="compile", held=held)


def aot_corpus(work: Path, home: Path) -> Corpus:
    new = Stored(home)
    with torch.no_grad():
        (expected,) = new.model(**new.call)
    prepare(["aot.serving.nexfort", "torch._dynamo", "torch._inductor.compile_fx"])
    # a store that was loaded from once has an index
    in_fork(partial(as_a_user, work / "used", partial(new.run, new.files)), seconds=DEADLINE)
    stored = Stored(work / "used" / "home")
    names = {path: f"{kind} layer" for kind, path in stored.blobs.items()}
    kinds = {path: names.get(path, path.removeprefix("v1/").split("/")[0]) for path in stored.files}
    targets = [Target(f"stored {kind}", stored.files, [path], stored.run) for path, kind in kinds.items()]
    graph, cache = stored.unpacked["graph"], stored.unpacked["cache"]
    from_graph, from_cache = partial(stored.run_graph, "eager"), partial(stored.run_cache, True)
    targets += [Target(f"packed {kind}", graph, paths, from_graph) for kind, paths in by_kind(graph).items()]
    targets += [Target(f"packed {kind}", cache, paths, from_cache) for kind, paths in by_kind(cache).items()]
    rare = [
        Target("compiled, packed graph layer", graph, list(graph), partial(stored.run_graph, "compile")),
        Target("compiled, packed cache layer", cache, list(cache), partial(stored.run_cache, False)),
    ]
    return Corpus("aot", work, expected, targets, rare)


def build_store(home: Path) -> Path:
    """The smallest artifact there is, with the threads and workers that a build has otherwise."""
    request = Request("pixart-alpha", "tiny", (Shape(64, 64),), gpu="cpu", options=Options(), components=("transformer",))
    environ = {name: value for name, value in os.environ.items() if name not in ALONE}
    build(request, LocalStore(home), progress=partial(print, file=sys.stderr), environ=environ)
    return home


def run(corpus: Corpus, numbers: Sequence[int], *, seed: int) -> list[Answer]:
    rows: list[Answer] = []
    for number in numbers:
        rows.append(corpus.trial(number, seed=seed))
        if len(rows) % 100 == 0:
            print(f"{corpus.name}: {len(rows)} of {len(numbers)},", dict(counted(rows)), file=sys.stderr, flush=True)
    return rows


def counted(rows: Sequence[Answer]) -> Counter[str]:
    counts = Counter(["trials"] * len(rows))
    for row in rows:
        counts[row["outcome"]] += 1
        if "served" in row:
            said, served = bool(row["said"]), row["served"]
            counts += Counter({"said": said, "served": served, "silent": not (said or served)})
    return counts


def table(rows: Sequence[Answer], by: str) -> dict[str, dict[str, int]]:
    return {name: dict(counted([row for row in rows if row[by] == name])) for name in sorted({row[by] for row in rows})}


def tell(name: str, rows: Sequence[Answer]) -> None:
    columns = ("trials", *OUTCOMES, *(("said", "served", "silent") if name == "aot" else ()))
    print(f"\n{name:32}" + "".join(f"{column:>10}" for column in columns))
    for kind, counts in {**table(rows, "kind"), "all": counted(rows)}.items():
        print(f"{kind:32}" + "".join(f"{counts.get(column, 0):>10}" for column in columns))


def account(rows: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """What goes into the JSON of a loader: counts, and every trial that did not give the right numbers."""
    failed = [row for row in rows if row["outcome"] != "ok"]
    endings = Counter(f"{row['outcome']}: {row['detail'].split(':')[0]}" for row in failed if row["outcome"] in ("signal", "exception"))
    tables = {"all": dict(counted(rows)), "by_kind": table(rows, "kind"), "by_fault": table(rows, "fault"), "endings": dict(endings)}
    return {**tables, "not_ok": failed, "seconds": round(seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1720, help="trials of each loader")
    parser.add_argument("--only", choices=("torch", "aot"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="this one alone")
    parser.add_argument("--store", type=Path, help="damage copies of this store of one pixart-alpha tiny, 64x64, instead of building one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if ALONE.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALONE})
    torch.set_num_threads(1)
    numbers = range(arguments.faults) if arguments.trial is None else [arguments.trial]
    found: dict[str, Any] = {
        "command": " ".join(["python", "scripts/corruption.py", *sys.argv[1:]]),
        "machine": {"target": str(Machine.detect("cpu")), "cores": os.cpu_count(), "python": platform.python_version()},
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory(prefix="aot-corruption-") as folder:
        for name in ("torch", "aot") if arguments.only is None else (arguments.only,):
            work = Path(folder) / name
            work.mkdir()
            corpus = torch_corpus(work) if name == "torch" else aot_corpus(work, arguments.store or build_store(work / "home"))
            started = time.monotonic()
            rows = run(corpus, numbers, seed=arguments.seed)
            found[name] = account(rows, time.monotonic() - started)
            tell(name, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    through = found.get("aot", {"not_ok": []})["not_ok"]
    for row in through:
        print(json.dumps(row), file=sys.stderr)
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
