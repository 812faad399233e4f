"""Faults, each one piece of damage from a seed, and the forks in which scripts/corruption.py tries what they do.

    python scripts/corruption_faults.py executed kernel.so --seed 7

Damages that one file in place and says where. `executed` flips a bit of the machine code that a call runs; `flip` of any byte.
"""

import argparse
import base64
import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch

Files: TypeAlias = Mapping[str, bytes]
Answer: TypeAlias = dict[str, Any]
Load: TypeAlias = Callable[[Files, Path], Answer]

# how often each comes: those that can be done in one way only need fewer trials than those that hit a random place
_TURNS = (
    "flip", "executed", "truncate", "zero", "flip", "executed", "append", "swap", "flip", "executed", "zero", "empty", "flip", "remove",
)  # fmt: skip
_LENGTH = 4096  # bytes; the most that is zeroed or appended: a page, the usual unit of what a disk or memory loses
_CODE = re.compile(r"AOT-E\d+")
_KERNEL = re.compile(rb"kernel$|cpp_fused|.*8run_impl")  # Inductor's kernels, and what calls them in an AOTInductor library
OUTCOMES = ("ok", "wrong", "signal", "exception", "hang")
TOLERANCE = 1e-4  # relative L2; the compiled functions differ from eager by less than 1e-6
THREADS = torch.get_num_threads()  # what a process has here; before the forks there must be one
DEADLINE = 90.0  # seconds; a trial that compiles everything anew takes a third of it
_RARE = 100  # trials; compiling takes a hundred times as long as the others
_DYNSYM, _FUNCTION = 11, 2  # elf.h: SHT_DYNSYM, STT_FUNC
_MEMORY, _FILE = 16 << 30, 1 << 30  # bytes that a fork may take more than it began with, and write to one file


def fault_of(turn: int, path: str, data: bytes) -> str:
    """The kind of fault whose turn it is; those that need content, or code, only where there is some."""
    fault = _TURNS[turn % len(_TURNS)]
    if fault == "executed" and not (path.endswith((".so", ".pt2")) and executed(data)):
        fault = "flip"
    return fault if data or fault in ("swap", "remove") else "append"


def damage(files: Files, path: str, fault: str, rng: Random) -> tuple[dict[str, bytes], str]:
    """The files with one fault in the file at `path`, and where it is."""
    changed = dict(files)
    data = changed.pop(path)
    if fault == "remove":
        return changed, "the whole file"
    if fault == "swap":
        other = _other(files, path, rng)
        if other is None:
            return {**changed, path: data[len(data) // 2 :] + data[: len(data) // 2]}, "its two halves"
        return {**changed, path: files[other], other: data}, f"with {other}"
    changed[path], where = _damaged(data, fault, rng)
    return changed, where


def _damaged(data: bytes, fault: str, rng: Random) -> tuple[bytes, str]:
    size = len(data)
    match fault:
        case "flip" | "executed":
            spans = executed(data) if fault == "executed" else [(0, size)]
            ((offset, length),) = rng.choices(spans, weights=[length for _, length in spans])
            place, bit = offset + rng.randrange(length), rng.randrange(8)
            return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], f"bit {bit} of byte {place} of {size}"
        case "truncate":
            left = rng.randrange(size)
            return data[:left], f"to {left} of {size} bytes"
        case "zero":
            place, length = rng.randrange(size), rng.randint(1, min(size, _LENGTH))
            end = min(place + length, size)
            fill = b"\0" if any(data[place:end]) else b"\xff"  # zeros in the place of zeros are no fault
            return data[:place] + fill * (end - place) + data[end:], f"bytes {place} to {end} of {size}"
        case "append":
            more = rng.randbytes(rng.randint(1, _LENGTH))
            return data + more, f"{len(more)} random bytes"
        case "empty":
            return b"", "the whole file"
    raise ValueError(fault)


def _other(files: Files, path: str, rng: Random) -> str | None:
    """A file of other content, of the same kind if there is one; None if there is no other."""
    others = [name for name in sorted(files) if name != path and files[name] != files[path]]
    alike = [name for name in others if Path(name).suffixes[-2:] == Path(path).suffixes[-2:] != []]
    return rng.choice(alike or others or [None])


def executed(data: bytes) -> list[tuple[int, int]]:
    """Offset and length of each kernel's machine code in the first shared library within `data`; none where there is none."""
    base = data.find(b"\x7fELF\x02")
    if base < 0:
        return []
    table, width, count = (*struct.unpack_from("<Q", data, base + 40), *struct.unpack_from("<HH", data, base + 58))
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, base + table + place * width) for place in range(count)]
    found = []
    for _, kind, _, _, offset, length, link, *_ in sections:
        for symbol in range(base + offset, base + offset + length, 24) if kind == _DYNSYM else ():
            name, info, _, _, address, extent = struct.unpack_from("<IBBHQQ", data, symbol)
            start = base + sections[link][4] + name
            if info & 15 == _FUNCTION and extent and _KERNEL.match(data[start : data.index(b"\0", start)]):
                found.append((base + address, extent))  # GNU ld gives code the address that is its offset in the file
    return found


@dataclass(frozen=True, slots=True)
class Ending:
    """How a fork ended: its answer, or what ended it."""

    outcome: str
    detail: str = ""
    answer: Answer = field(default_factory=dict)


def in_fork(work: Callable[[], Answer], *, seconds: float) -> Ending:
    """Run `work` in a fork, which is believed only what JSON can say: what a damaged process sends is no pickle to load.

    The process that forks must have one thread: a fork has no others, and would wait for them.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        _child(work, writing)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        said = _all_of(pipe, time.monotonic() + seconds)
    for end in (os.killpg, os.kill):  # and the compilers that it started; a fork that died of itself stays dead of that
        with suppress(ProcessLookupError):
            end(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if said is None:
        return Ending("hang", f"no answer in {seconds:g} s")
    if not said.endswith(b"\n"):
        code = os.waitstatus_to_exitcode(status)
        return Ending("signal", signal.Signals(-code).name if code < 0 else f"exit {code}")
    try:
        answer = json.loads(said)
    except ValueError:
        return Ending("signal", "no sense in its answer")
    return Ending("exception", answer["exception"], answer) if "exception" in answer else Ending("ok", answer=answer)


def _all_of(pipe: Any, until: float) -> bytes | None:
    """Everything that comes through `pipe`; None when it has not ended by then."""
    said = b""
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        chunk = pipe.read(1 << 16)
        if not chunk:
            return said
        said += chunk
    return None


def _child(work: Callable[[], Answer], writing: int) -> None:
    """Never returns."""
    try:
        _confine()
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - it would have reached the caller, whatever it is
            answer = {"exception": f"{type(error).__name__}: {error}"[:300], "at": traceback.format_exc()[-2000:]}
        os.write(writing, json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(1)


def _confine() -> None:
    """A process group of its own, no output, and bounds, so that what goes wrong in here harms nothing else."""
    faulthandler.disable()  # a death is told by its status; under pytest this one would tell it to the terminal
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, _FILE), (resource.RLIMIT_AS, used + _MEMORY)):
        resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))


@dataclass(frozen=True, slots=True)
class Target:
    """Files of one kind and what loads them: one of `paths` is hit; `load` is given all `files`, and a folder of its own."""

    kind: str
    files: Files
    paths: Sequence[str]
    load: Load


@dataclass(frozen=True, slots=True)
class Corpus:
    """A loader's targets, and the output that every trial must have. `rare` targets come once in a hundred trials."""

    name: str
    work: Path
    expected: torch.Tensor
    targets: Sequence[Target]
    rare: Sequence[Target] = ()
    deadline: float = DEADLINE
    controls: dict[Load, set[str]] = field(default_factory=dict)  # what each loader says when nothing is damaged

    def trial(self, number: int, *, seed: int) -> dict[str, Any]:
        """One fault and what became of it. The same number and seed give the same fault in the same files."""
        rarely = self.rare and number % _RARE == _RARE // 2
        among, count = (self.rare, number // _RARE) if rarely else (self.targets, number)
        turn, place = divmod(count, len(among))
        target, rng = among[place], Random(f"{seed} {self.name} {number}")
        path = rng.choice(target.paths)
        fault = fault_of(turn + 5 * place, path, target.files[path])  # no two neighbours begin with the same
        files, where = damage(target.files, path, fault, rng)
        usual, started = self._control(target), time.monotonic()
        ending = self._tried(target, files)
        row = {"trial": number, "kind": target.kind, "fault": fault, "path": path, "where": where, "outcome": ending.outcome}
        if "said" in ending.answer:
            row["said"] = sorted({*_CODE.findall(" ".join(set(ending.answer["said"]) - usual))})
        told = {name: ending.answer[name] for name in ("served", "at") if name in ending.answer}
        return {**row, **told, "detail": ending.detail, "seconds": round(time.monotonic() - started, 2)}

    def _control(self, target: Target) -> set[str]:
        """What is said without a fault, tried once a loader; a loader that fails of itself would tell nothing of faults."""
        if target.load not in self.controls:
            ending = self._tried(target, target.files)
            if ending.outcome != "ok":
                raise SystemExit(f"{target.kind}, not damaged: {ending.outcome}, {ending.detail}")
            self.controls[target.load] = set(ending.answer.get("said", ()))
        return self.controls[target.load]

    def _tried(self, target: Target, files: Files) -> Ending:
        """The numbers are compared out here: a process with damaged code in it is no judge of itself."""
        directory = Path(tempfile.mkdtemp(dir=self.work))
        ending = in_fork(partial(as_a_user, directory, partial(target.load, files)), seconds=self.deadline)
        shutil.rmtree(directory, ignore_errors=True)
        if ending.outcome != "ok":
            return ending
        raw, expected = base64.b64decode(ending.answer["output"]), self.expected.double().flatten()
        if len(raw) != len(expected) * 4:
            return Ending("wrong", f"{len(raw)} bytes", ending.answer)
        error = float((torch.frombuffer(bytearray(raw), dtype=torch.float32) - expected).norm() / expected.norm())
        return ending if error <= TOLERANCE else Ending("wrong", f"relative L2 {error:.1e}", ending.answer)


def as_a_user(directory: Path, load: Callable[[Path], Answer]) -> Answer:
    torch.set_num_threads(THREADS)
    os.umask(0o077)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    return load(directory)


def as_text(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.detach().float().contiguous().numpy().tobytes()).decode()


def read(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write(files: Files, root: Path) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fault", choices=sorted({*_TURNS} - {"swap", "remove"}))
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    changed, where = _damaged(arguments.file.read_bytes(), arguments.fault, Random(arguments.seed))
    arguments.file.write_bytes(changed)
    print(f"{arguments.fault}: {where}")


if __name__ == "__main__":
    main()
