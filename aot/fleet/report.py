"""Report: a matrix as a page: what there is for each GPU and torch, and how builds and warm-ups went over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from aot.cache_store.store import Entry
from aot.fleet.state import State

# what a later build of one thing has in common with an earlier one, whatever else moved
_SAME = ("recipe", "variant", "scope", "mode", "shapes", "dynamic", "target.device", "target.sku", "target.torch", "layers", "tuning")

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fff; --line: #ddd; --there: #009E73; --missing: #D55E00; --slower: #CC79A7 }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --page: #161616; --line: #444; --there: #2fd0a5; --missing: #ff8c42 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: var(--ink); background: var(--page) }
table { border-collapse: collapse } td, th { padding: .3em .8em; text-align: left; border: 1px solid var(--line); vertical-align: top }
.there { border-left: .3em solid var(--there) } .missing { border-left: .3em solid var(--missing) } small { display: block }
.slower { color: var(--slower); font-weight: bold } svg polyline { fill: none; stroke: var(--ink) } .scroll { overflow-x: auto }
"""


@dataclass(frozen=True, slots=True)
class Course:
    """How long one thing took, oldest first: building it, or its first calls once loaded. Seconds."""

    name: str
    what: str
    seconds: tuple[float, ...]

    def slower(self) -> float:
        """By what the last is longer than the one before, as a share of that; 0 where it is not."""
        if len(self.seconds) < 2 or not self.seconds[-2]:
            return 0.0
        return max(self.seconds[-1] / self.seconds[-2] - 1, 0.0)

    def __str__(self) -> str:
        return f"{self.name}: {self.what} took {self.seconds[-2]:.2f} s before and {self.seconds[-1]:.2f} s now"


def courses(entries: Iterable[Entry]) -> list[Course]:
    """Of everything that a store has more than one build of, and of what it has one."""
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.created):
        groups[tuple(entry.key.get(name, "") for name in _SAME)].append(entry)
    found = []
    for group in groups.values():
        name = " ".join(filter(None, (group[0].ref.name, *(group[0].key.get(part, "") for part in ("variant", "shapes", "target.sku")))))
        for what, seconds in (("building", list(map(_build, group))), ("the first calls", list(map(_warm_up, group)))):
            if known := tuple(one for one in seconds if one is not None):
                found.append(Course(name, what, known))
    return found


def _build(entry: Entry) -> float | None:
    told = entry.producer.get("cold_build")
    return float(told) if told else None


def _warm_up(entry: Entry) -> float | None:
    told = entry.measured.get("graph_first_call_s")
    return sum(told.values()) if told else None


def page(states: Sequence[State], found: Sequence[Course], *, allowed: float) -> str:
    """HTML with no reference to anything outside itself. `allowed`: the share by which something may get slower unmarked."""
    columns = list(dict.fromkeys((state.cell.gpu, state.cell.torch) for state in states))
    rows = list(dict.fromkeys(_row(state) for state in states))
    grid = {(_row(state), (state.cell.gpu, state.cell.torch)): state for state in states}
    missing = sum(state.to_build for state in states)
    head = "".join(f"<th>{escape(gpu)}<small>{escape(f'torch {torch}' if torch else '')}</small></th>" for gpu, torch in columns)
    body = "".join(f"<tr><th>{escape(row)}</th>{''.join(_cell(grid.get((row, column))) for column in columns)}</tr>" for row in rows)
    course = "".join(_course(one, allowed) for one in found)
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>Artifacts: {len(states) - missing} of {len(states)}</title>",
            f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
            f"<h1>{len(states) - missing} of {len(states)} artifacts are there</h1>",
            f"<div class=scroll><table id=grid><tr><th></th>{head}</tr>{body}</table></div>",
            "<h2>Over time</h2>" * bool(found),
            f"<div class=scroll><table id=courses>{course}</table></div>" if found else "",
            "</html>",
        ]
    )


def _row(state: State) -> str:
    cell = state.cell
    return " ".join(filter(None, (cell.what, cell.variant, cell.mode, " ".join(cell.sizes))))


def _cell(state: State | None) -> str:
    if state is None:
        return "<td></td>"
    if state.entry is None:
        return f"<td class=missing>to build<small>{escape(state.why)}</small></td>"
    entry = state.entry
    errors = [call["relative_l2"] for call in entry.certificate.get("calls", [])]
    warm = _warm_up(entry)
    told = (
        f"{entry.size / 2**20:.1f} MiB",
        "" if warm is None else f"first calls {warm:.2f} s",
        f"relative L2 {max(errors):.1e}" if errors else "not run on its GPU",
        f"signed by {' '.join(signer[:12] for signer in entry.signers)}" if entry.signers else "",
    )
    lines = "".join(f"<small>{escape(line)}</small>" for line in told if line)
    return f"<td class=there><code>{entry.digest.short}</code>{lines}</td>"


def _course(course: Course, allowed: float) -> str:
    slower = course.slower()
    said = f"<td class=slower>{slower:+.0%}</td>" if slower > allowed else f"<td>{f'{slower:+.0%}' if slower else ''}</td>"
    last = f"<td>{course.seconds[-1]:.2f} s</td>"
    return f"<tr><td>{escape(course.name)}</td><td>{course.what}</td><td>{_line(course.seconds)}</td>{last}{said}</tr>"


def _line(seconds: Sequence[float]) -> str:
    """The course as a line, from nothing to the longest."""
    most, step = max(seconds) or 1.0, 100 / max(len(seconds) - 1, 1)
    points = " ".join(f"{place * step:.1f},{24 - 22 * value / most:.1f}" for place, value in enumerate(seconds))
    title = " ".join(f"{value:.2f}" for value in seconds)
    return f"<svg width=100 height=25 role=img><title>{title}</title><polyline points='{points}'/></svg>"
