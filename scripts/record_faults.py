"""Records as a stranger might send them: one value or branch of a Record's file replaced, thousands of times, each opened in a fork.

    python scripts/record_faults.py --count 5000

What may come of each: an error of ours that says what is wrong, or modules whose fingerprints are the recorded ones. Counted beside
are errors that are not ours, ends of the process, and hangs; and whether anything was run that opening a file has no business with:
programs, connections, files written, modules imported that are of no library named. Writes scripts/results/record-faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import aot
from aot.cache_store.errors import CodedError
from aot.model.fingerprint import Fingerprint
from aot.request.record import Record
from tests.pipelines import make

RESULTS = Path(__file__).with_name("results") / "record-faults.json"
PIPELINES = ("flux", "sana", "wan", "sd15-controlnet", "z-image", "lumina2")
SECONDS = 60  # for one Record, after which it counts as a hang
OUTSIDE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        1 << 16,
        1 << 31,
        1 << 62,
        -(1 << 40),
        0.5,
        -1.5,
        1e300,
        "",
        "a",
        "x" * 4096,
        [],
        {},
        [0],
        [[]],
    ),
    *("os:system", "builtins:eval", "subprocess:Popen", "torch.nn:Linear", "diffusers:DiffusionPipeline", "transformers:AutoModel"),
    *("../../etc/passwd", "/etc/passwd", "somebody/repository", "https://example.org/x", "__import__('os').system('true')"),
    *({"a": 1}, {"": ""}, [1] * 64, "float32", "load", "cuda", "meta", ["dict", "os:environ"], "attn_implementation", "eager", 10**30),
]


def changed(value: Any, draw: random.Random) -> Any:
    """A copy of a Record's value in which one place holds another value, is gone, or is there under another name."""
    value = json.loads(json.dumps(value))
    node = value
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.85:
            node = node[key]
            continue
        way = draw.random()
        if way < 0.8:
            node[key] = draw.choice(VALUES)
        elif isinstance(node, dict) and way < 0.9:
            node[str(draw.choice(VALUES))[:40]] = node.pop(key)
        elif isinstance(node, dict):
            del node[key]
        else:
            node.insert(int(key), draw.choice(VALUES))
        return value


def opened(path: Path, value: Any) -> str:
    """What opening the file comes to, in this process."""
    try:
        found = Record.load(path)
    except CodedError as error:
        return "refused" if error.message else "refused without a word"
    except Exception as error:  # noqa: BLE001 - what this counts
        return f"raised {type(error).__name__}: {error}"[:300]
    components = value.get("components", {})
    same = all(Fingerprint.from_json(lines).differs(Fingerprint.of(found.modules[at]).essence) is None for at, lines in components.items())
    return "the same" if same else "ANOTHER MODEL"


def in_a_fork(value: Any, folder: Path) -> tuple[str, list[str]]:
    """What it comes to, and what was run that had no business to."""
    path, answer = folder / "record.json", folder / "answer.json"
    path.write_text(json.dumps(value))
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        events: list[str] = []
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        signal.alarm(SECONDS)

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            wrote = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if wrote or event.startswith(OUTSIDE):
                events.append(f"{event} {str(arguments)[:120]}")

        sys.addaudithook(look)
        said = opened(path, value)
        seen = list(events)
        answer.write_text(json.dumps([said, seen]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not answer.exists():
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return ("hung" if number == signal.SIGALRM else f"ended by signal {number}"), []
    said, seen = json.loads(answer.read_text())
    return said, seen


def recorded(name: str, folder: Path) -> Any:
    pipe, call = make(name)
    with aot.record(pipe) as record, torch.no_grad():
        pipe(**call)
    record.save(folder / f"{name}.json")
    return json.loads((folder / f"{name}.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    draw, counts, bad = random.Random(given.seed), Counter[str](), list[Any]()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        values = {name: recorded(name, folder) for name in PIPELINES}
        assert all(opened(folder / f"{name}.json", value) == "the same" for name, value in values.items())
        for number in range(given.count):
            name = PIPELINES[number % len(PIPELINES)]
            value = changed(values[name], draw)
            said, events = in_a_fork(value, folder)
            kind = said.split(":")[0] if said.startswith("raised") else said
            counts[kind] += 1
            counts["ran something"] += bool(events)
            if events or said not in ("refused", "the same"):
                bad.append({"number": number, "pipeline": name, "said": said, "ran": events})
                print(json.dumps(bad[-1]), flush=True)
    print(dict(counts))
    about = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "count": given.count}
    given.json.write_text(json.dumps({**about, "counts": counts, "bad": bad}, indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
