"""The commands that reproduce each row that nexfort's documents published, beside the published figures.

    python scripts/seed_tables.py              # as Markdown
    python scripts/seed_tables.py --commands   # the commands alone, a line each

Each needs the GPU it names; none of them was run by us so far.
"""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from aot.recipes import find

SD21_MODE = "cudagraphs:benchmark:max-autotune:low-precision:cache-all"
PIXART_MODE = "max-optimize:max-autotune:freezing:benchmark:cudagraphs"
LATTE_MODE = "max-optimize:max-autotune:freezing:benchmark:low-precision"


@dataclass(frozen=True)
class Row:
    """One published measurement: how it was run, and it/s, end-to-end s, GiB (PyTorch -> nexfort), then the warm-ups in s."""

    recipe: str
    gpu: str
    shape: str
    mode: str
    fuse_qkv: bool = False
    options: tuple[str, ...] = ()
    note: str = ""
    published: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        steps = find(self.recipe).variant("full").steps
        found = ["aot", "bench", self.recipe, "--variant", "full", "--gpu", self.gpu, "--dtype", "float16", "--shape", self.shape]
        found += ["--steps", str(steps), "--mode", self.mode, "--memory-format", "channels_last"]
        found += ["--fuse-qkv"] if self.fuse_qkv else []
        return [*found, *(word for option in self.options for word in ("--option", option))]


@dataclass(frozen=True)
class Sizes:
    """A published run over many sizes: one artifact for all of them."""

    recipe: str
    mode: str

    def command(self) -> list[str]:
        found = ["aot", "build", self.recipe, "--gpu", "rtx-4090", "--dtype", "float16", "--dynamic", "--shapes", "seed"]
        return [*found, "--mode", self.mode, "--memory-format", "channels_last"]


def published(speed: str, end_to_end: str, memory: str, run: str, compiled: str, cached: str) -> dict[str, str]:
    names = ("it/s", "E2E s", "max memory GiB", "warm-up with run s", "warm-up with compilation s", "warm-up with cache s")
    return dict(zip(names, (speed, end_to_end, memory, run, compiled, cached), strict=True))


SD21 = ("overrides.conv_benchmark=true", "overrides.matmul_allow_tf32=true")
GONE = "`inductor.optimize_linear_epilogue` and `triton.fuse_attention_allow_fp16_reduction` are gone from today's torch and left out"
ROWS = (
    Row(
        "pixart-alpha", "a100-pcie-40gb", "1024x1024", PIXART_MODE, fuse_qkv=True,
        published=published("8.623 -> 10.743", "2.568 -> 1.992", "14.445 -> 13.855", "4.100", "776.170", "111.563"),
    ),
    Row(
        "pixart-alpha", "a100-pcie-40gb", "1024x1024", "max-autotune", fuse_qkv=True,
        note="published as: less compilation time, slightly less speed",
    ),
    Row(
        "pixart-alpha", "a100-pcie-40gb", "1024x1024", "jit:disable-runtime-fusion", fuse_qkv=True,
        published={"warm-up with compilation s": "21.832"},
    ),
    Row(
        "latte", "a100-pcie-40gb", "512x512", LATTE_MODE, note=f"{GONE}; its model cannot fuse its projections",
        published=published("1.60 -> 2.27", "32.618 -> 22.601", "19.9 -> 19.9", "33.291", "572.877", "148.068"),
    ),
    Row("latte", "a100-pcie-40gb", "512x512", "max-autotune", note=GONE, published={"warm-up with compilation s": "236"}),
    Row(
        "sd21", "rtx-3090", "768x768", SD21_MODE, options=SD21, note=GONE,
        published=published("10.45 -> 15.93", "2.10 -> 1.35", "3.767 -> 3.558", "", "301.54", "113.04"),
    ),
    Row(
        "sd21", "rtx-3090", "512x512", SD21_MODE, options=SD21, note=GONE,
        published=published("22.84 -> 44.84", "0.97 -> 0.49", "3.025 -> 3.018", "", "222.18", "44.94"),
    ),
    Row(
        "sd21", "rtx-4090", "768x768", SD21_MODE, options=SD21, note=GONE,
        published=published("12.34 -> 31.63", "1.78 -> 0.68", "3.767 -> 3.567", "", "195.34", "32.41"),
    ),
    Row(
        "sd21", "rtx-4090", "512x512", SD21_MODE, options=SD21, note=GONE,
        published=published("39.06 -> 83.63", "0.58 -> 0.26", "3.024 -> 3.016", "", "165.29", "30.10"),
    ),
    Row(
        "sdxl-ip-adapter", "rtx-3090", "1024x1024", "O2", note="the mode is not stated there",
        published=published("3.74 -> 5.42", "27.91 -> 19.60", "14.58 -> 15.10", "", "702.90", "537.88"),
    ),
    Row(
        "sdxl-ip-adapter", "rtx-4090", "1024x1024", "O2", note="the mode is not stated there",
        published=published("7.96 -> 11.97", "13.62 -> 9.28", "14.59 -> 15.09", "", "576.90", "433.00"),
    ),
)  # fmt: skip
SIZES = (
    Sizes("sdxl", "max-optimize:max-autotune:low-precision"),
    Sizes("pixart-alpha", "max-optimize:max-autotune:low-precision"),
    Sizes("sd21", "cudagraphs:max-autotune:low-precision:cache-all"),
    Sizes("sdxl-ip-adapter", "O2"),
)


def markdown() -> Iterator[str]:
    yield "# Published figures, PyTorch -> nexfort, and the commands that measure them today\n"
    for row in ROWS:
        yield f"## {row.recipe} {row.shape}, {row.gpu}, {row.mode}\n"
        yield from (f"- {name}: {value}" for name, value in row.published.items() if value)
        if row.note:
            yield f"- {row.note}"
        yield f"\n```bash\n{shlex.join(row.command())}\n```\n"
    yield "## Many sizes, without figures\n"
    for sizes in SIZES:
        shapes = ", ".join(map(str, find(sizes.recipe).seed_shapes))
        yield f"{sizes.recipe}: {shapes}\n\n```bash\n{shlex.join(sizes.command())}\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", action="store_true", help="the commands alone")
    lines = (shlex.join(row.command()) for row in (*ROWS, *SIZES)) if parser.parse_args().commands else markdown()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
