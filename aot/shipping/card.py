"""Card: README.md of a Hub repository, made from what it holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from aot.cache_store.store import Entry
from aot.shipping.listing import Row

_WARNING = """> **Loading an artifact runs its author's code.** These files hold shared libraries that are mapped into your process, and
> sources, pickles and libraries that `torch.compile` runs when it falls back. Trust the key of whoever signed them, or pin
> their digests; a key line belongs to be got from its owner, not from this page."""

_COLUMNS = (
    "recipe",
    "GPU",
    "torch",
    "mode",
    "variant",
    "shapes",
    "size",
    "warm-up without / with",
    "largest relative L2",
    "signed by",
    "digest",
)


def render(entries: Collection[Entry], location: str, count: int | None = None) -> str:
    """The whole card: artifacts by GPU with their quality certificates, how to load them, and the warning. `count`: how many there
    are in all, where these are the newest."""
    rows = sorted(map(Row, entries), key=lambda row: (row.part("target.sku"), row.ref.name, row.entry.created))
    data = ModelCardData(library_name="aot", tags=["aot", "compiled", "diffusers", *sorted({row.ref.name for row in rows})])
    table = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    repo = location.removeprefix("hf://")
    names = sorted({row.ref.name for row in rows}) or ["RECIPE"]
    text = "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# Compiled diffusion models: {repo}",
            "",
            "Made by `aot`: graphs compiled once for a GPU, a torch and a mode, and loaded without compiling.",
            "They hold no weights, except those built under `freezing`.",
            "",
            _WARNING,
            "",
            "## Artifacts",
            "",
            *lines,
            "",
            *_more(len(rows), count, location),
            "Warm-up: seconds to compile the graphs one by one, and for the first call of each once loaded (where the build ran them). "
            "The error is that of compiled outputs against eager. Who signed: the beginning of each key's id (the sha256 of the key).",
            "",
            "## Load",
            "",
            "```bash",
            f"aot lookup {names[0]} {location}              # is there one for my GPU?",
            f"aot trust add KEYLINE --store {location}      # whose key: ask its owner; or: aot lock {names[0]} --from {location}",
            f"aot pull {names[0]} --from {location}",
            "NEXFORT_GRAPH_CACHE=1 python serve.py",
            "```",
            "",
            *_on_spaces(rows, repo),
            "## Quality certificates",
            "",
            *(line for row in rows for line in _certificate(row)),
        ]
    )
    return str(ModelCard(text + "\n"))


def _on_spaces(rows: list[Row], repo: str) -> list[str]:
    """How a ZeroGPU Space loads the packages at the root, where some artifact has brought them."""
    having = [row for row in rows if row.part("layout") == "spaces"]
    if not having:
        return []
    calls = dict.fromkeys(
        f'spaces.{"aoti_load" if row.part("scope") == "whole" else "aoti_blocks_load"}(pipe.{component}, "{repo}")'
        for row in having
        for component in (row.entry.measured.get("packages") or {}).values()
    )
    machines = ", ".join(dict.fromkeys(f"{row.part('target.sku')} with torch {row.part('target.torch')}" for row in having))
    return [
        "## On a ZeroGPU Space",
        "",
        "```python",
        "import spaces",
        *calls,
        "```",
        "",
        f"Packages were pushed for: {machines}. `config.json` says what those at the root are for, and for which calls. Folders called "
        "`BlockClass.VARIANT` are others, which a Space loads by a third argument, VARIANT; `config.VARIANT.json` is theirs. "
        "A Space compares nothing: another GPU, torch, size or weights of other shapes give wrong pictures or crash.",
        "",
    ]


def _more(shown: int, count: int | None, location: str) -> list[str]:
    if count is None or count <= shown:
        return []
    return [f"These are the newest {shown} of {count}; `aot lookup NAME {location}` tells of all of a name.", ""]


def _cells(row: Row) -> tuple[str, ...]:
    worst = max((call["relative_l2"] for call in row.entry.certificate.get("calls", [])), default=None)
    return (
        row.ref.name,
        f"{row.part('target.device')} {row.part('target.sku')}",
        row.part("target.torch"),
        row.mode,
        row.part("variant"),
        row.shapes,
        f"{row.entry.size / 2**20:.1f} MiB",
        f"{_sum(row.entry.measured.get('compile_s'))} / {_sum(row.entry.measured.get('graph_first_call_s'))}",
        "not run" if worst is None else f"{worst:.1e}",
        " ".join(signer[:12] for signer in row.entry.signers) or "nobody",
        f"`{row.digest.short}`",
    )


def _sum(seconds: Any) -> str:
    return f"{sum(seconds.values()):.2f}" if isinstance(seconds, dict) and seconds else "-"


def _certificate(row: Row) -> list[str]:
    found = row.entry.certificate
    title = f"**{row.ref.name} `{row.digest.short}`**, {row.target}:"
    if why := found.get("unchecked"):
        return [f"- {title} {why}"]
    calls = [f"  - {call['call']}: max abs {call['max_abs']:.1e}, relative L2 {call['relative_l2']:.1e}" for call in found.get("calls", [])]
    return [f"- {title} allowed relative L2 {found.get('tolerance_relative_l2')}", *calls]
