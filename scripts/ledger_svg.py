"""Draw the start-up ledger of a bench's raw figures as an SVG: the picture of README.

    python scripts/ledger_svg.py scripts/results/pixart-alpha-small-cpu.json > scripts/results/pixart-alpha-small-cpu.svg

One row a way, on a logarithmic scale: what is compared is ratios, and they span three orders of magnitude.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 760, 190, 130, 46, 40, 22
ROWS = {
    "cold": "torch.compile",
    "jit-warm": "with its cache warm",
    "regional-cold": "compile_repeated_blocks",
    "regional-warm": "with its cache warm",
    "eager": "eager",
    "artifact": "from an artifact",
}
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #24292f } .small { font-size: 12px; fill: #57606a }
  .bar { fill: #8c959f } .artifact { fill: #0969da } line { stroke: #d0d7de }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #6e7681 } .artifact { fill: #4493f8 } line { stroke: #3d444d }
  }
"""


def drawn(found: dict[str, Any]) -> str:
    """The SVG of a bench's JSON."""
    seconds = {way: account["startup_s"] for way, account in found["ways"].items()}
    least, most = 10.0 ** math.floor(math.log10(min(seconds.values()))), 10.0 ** math.ceil(math.log10(max(seconds.values())))
    scale = (WIDTH - LEFT - RIGHT) / math.log10(most / least)

    def place(value: float) -> float:
        return LEFT + scale * math.log10(value / least)

    ways = [way for way in ROWS if way in seconds]
    height = TOP + ROW * len(ways) + 30
    request, machine = found["request"], found["machine"]
    title = f"{request['recipe']} {request['variant']}, {request['shapes'][0]}: seconds to the first outputs"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{STYLE}</style>",
        f'<text x="0" y="16">{title}</text>',
    ]
    decade = least
    while decade <= most * 1.001:
        x = place(decade)
        lines.append(f'<line x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{height - 26}"/>')
        lines.append(f'<text class="small" x="{x:.1f}" y="{height - 10}" text-anchor="middle">{decade:g} s</text>')
        decade *= 10
    for number, way in enumerate(ways):
        y, value = TOP + ROW * number, seconds[way]
        kind = "bar artifact" if way == "artifact" else "bar"
        times = f"  ({value / seconds['artifact']:.0f} times)" if value > 1.5 * seconds["artifact"] else ""
        lines.append(f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{ROWS[way]}</text>')
        lines.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{place(value) - LEFT:.1f}" height="{BAR}" rx="2"/>')
        lines.append(f'<text x="{place(value) + 8:.1f}" y="{y + 16}">{value:.3g} s{times}</text>')
    lines.append(f'<text class="small" x="{WIDTH}" y="16" text-anchor="end">{machine["cores"]} cores, {_torch(machine["target"])}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _torch(target: str) -> str:
    return next(part for part in target.split("/") if part.startswith("torch-")).replace("-", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="what `aot bench --json` printed")
    print(drawn(json.loads(parser.parse_args().figures.read_text())), end="")


if __name__ == "__main__":
    main()
