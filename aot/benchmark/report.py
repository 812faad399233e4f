"""Report: the start-up ledger as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aot.benchmark.bench import Account, StartupLedger

# a palette that stays distinct in greyscale and for the colour-blind (Okabe and Ito)
_COLOURS = {
    "find": "#56B4E9",
    "verify": "#009E73",
    "materialise": "#F0E442",
    "compare": "#CC79A7",
    "load": "#E69F00",
    "other setup": "#999999",
    "first call": "#0072B2",
}
_LINE_COLOURS = {"interpreter": "#999999", "imports": "#56B4E9", "weights": "#009E73", "start-up": "#E69F00", "picture": "#0072B2"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
.row { display: grid; grid-template-columns: 8em 1fr 6em; gap: .8em; align-items: center; margin: .3em 0 }
.bar { display: flex; height: 1.4em; background: #f3f3f3 } .bar span { display: block; min-width: 1px }
.key span { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -1px }
table { border-collapse: collapse } td, th { padding: .2em 1em .2em 0; text-align: left; border-bottom: 1px solid #ddd }
.right { text-align: right; font-variant-numeric: tabular-nums }
"""


def page(ledger: StartupLedger) -> str:
    """HTML with no reference to anything outside itself."""
    request, ratios = ledger.request, ledger.ratios()
    title = f"{request.recipe} {request.variant}: start-up"
    quick = [account for account in ledger.accounts.values() if account.way in ("eager", "artifact")]
    shapes = " ".join(map(str, request.shapes))
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(ledger.machine['target'])}, {ledger.machine['cores']} cores; {escape(shapes)}, {request.dtype}, mode "
            f"{escape(request.options.mode.title)}, scope {request.scope}. Seconds from a pipeline with its weights to the first "
            "output of every component; imports and weights excluded.</p>",
            f"<p>{_quicker(ratios)}<b>{ratios['artifact_minus_eager_s']:+.3f} s</b> against eager.</p>",
            "<h2>Every way</h2>",
            *_bars([(account.way, segments(account)) for account in ledger.accounts.values()], _COLOURS),
            "<h2>Eager and artifact, enlarged</h2>",
            *_bars([(account.way, segments(account)) for account in quick], _COLOURS),
            _legend(_COLOURS),
            "<h2>From <code>python</code> to the first picture</h2>",
            "<p>All that a user waits for: what an artifact does not save too.</p>",
            *_bars([(account.way, line(account)) for account in ledger.accounts.values()], _LINE_COLOURS),
            _legend(_LINE_COLOURS),
            "<h2>Ratios of this run</h2>",
            _table([(name, f"{value:.4g}") for name, value in ratios.items()]),
            "<h2>As nexfort's tables</h2>",
            _table(ledger.seed_rows()),
            f"<p>Artifact <code>{ledger.digest}</code>, {ledger.size} bytes compressed.</p></html>",
        ]
    )


def segments(account: Account) -> dict[str, float]:
    """The start-up's seconds by part; they add up to `startup_s`."""
    other = account.setup_s - sum(account.parts_s.values())
    return {**account.parts_s, "other setup": max(other, 0.0), "first call": sum(account.first_call_s)}


def line(account: Account) -> dict[str, float]:
    """The seconds from `python` to the first picture by part; they add up to `line_s`."""
    return {**account.before_s, "start-up": account.startup_s, "picture": account.pipeline_first_s}


def _bars(rows: list[tuple[str, dict[str, float]]], colours: Mapping[str, str]) -> list[str]:
    longest = max(sum(parts.values()) for _, parts in rows)
    return [_bar(name, parts, longest, colours) for name, parts in rows]


def _bar(name: str, parts: dict[str, float], longest: float, colours: Mapping[str, str]) -> str:
    spans = "".join(
        f"<span style='width:{100 * seconds / longest:.3f}%;background:{colours[part]}' title='{part}: {seconds:.4f} s'></span>"
        for part, seconds in parts.items()
        if seconds > 0
    )
    return f"<div class=row><div>{name}</div><div class=bar>{spans}</div><div class=right>{sum(parts.values()):.3f} s</div></div>"


def _legend(colours: Mapping[str, str]) -> str:
    return "<p class=key>" + "".join(f"<span style='background:{colour}'></span>{part}" for part, colour in colours.items()) + "</p>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td class=right>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _quicker(ratios: Mapping[str, float]) -> str:
    """By how much the artifact starts sooner than each compiled way that was measured."""
    compiled = {
        "cold_over_artifact": "than a cold compile", "jit_warm_over_artifact": "than a warm one",
        "regional_cold_over_artifact": "than a cold compile of the blocks", "regional_warm_over_artifact": "than a warm one of these",
    }  # fmt: skip
    return "".join(f"<b>{ratios[name]:.0f}×</b> quicker {what}, " for name, what in compiled.items() if name in ratios)
