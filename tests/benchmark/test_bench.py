"""The start-up ledger, for real, of the session's artifact. Nothing here asserts a time."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from aot.benchmark.bench import Account, StartupLedger
from aot.benchmark.measure import _compared
from aot.benchmark.measurement import BEFORE, COMPARED, WAYS, Way
from aot.benchmark.report import line, page, segments
from aot.cli.bench import print_ledger
from tests.cli.test_cli import run
from tests.conftest import REGIONAL, Regional, request_for

COMPILED = pytest.param(",".join(WAYS), marks=pytest.mark.slow)


@pytest.mark.parametrize("ways", ["eager,artifact", COMPILED])
def test_bench_measures_every_way_asked_for_and_writes_a_self_contained_page(regional: Regional, tmp_path: Path, ways: str) -> None:
    shutil.copytree(regional[0], tmp_path / "home")
    page = tmp_path / "ledger.html"
    words = ("--ways", ways, "--rounds", "1", "--steps", "3", "--html", str(page))
    done = run("bench", *REGIONAL, *words, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    ledger = json.loads(done.stdout)
    assert ",".join(ledger["ways"]) == ways
    ratios = {"artifact_minus_eager_s", "steady_artifact_over_eager", "relative_l2_error"}
    if "cold" in ways:
        ratios |= {f"{way.replace('-', '_')}_over_artifact" for way in WAYS if way not in COMPARED} | {"steady_artifact_over_jit"}
    assert ratios <= set(ledger["ratios"])
    assert ledger["ratios"]["relative_l2_error"] <= 1e-5
    artifact = ledger["ways"]["artifact"]
    assert set(artifact["parts_s"]) == {"find", "verify", "materialise", "compare", "load"}
    assert artifact["startup_s"] == pytest.approx(artifact["setup_s"] + sum(artifact["first_call_s"]))
    assert set(artifact["before_s"]) == set(BEFORE)
    assert all(seconds > 0 for seconds in artifact["before_s"].values())
    assert artifact["line_s"] > artifact["startup_s"] + sum(artifact["before_s"].values())
    assert not artifact["inductor_imported"]
    assert len(ledger["seed_rows"]) == (12 if "cold" in ways else 8)
    assert len(ledger["calls"]) == len(artifact["steady_s"]) == 1

    html = page.read_text()
    assert re.findall(r"(?:src|href)=|url\(|@import", html) == []
    assert all(f"<div>{way}</div>" in html for way in ledger["ways"])


def _ledger() -> StartupLedger:
    accounts = {}
    for number, way in enumerate(WAYS):
        account = Account(
            way,
            1.0 + number,
            {"find": 0.25} if way == "artifact" else {},
            dict.fromkeys(BEFORE, 0.5),
            [2.0],
            {"max_abs": 0.5, "relative_l2": 1e-6, "psnr": None},
        )
        account.steady_s, account.pipeline_first_s, account.pipeline_s, account.iterations_per_s = [0.5], 4.0, 3.0, 8.0 * (number + 1)
        accounts[way] = account
    return StartupLedger(request_for(), "sha256:0", 1 << 20, ["a call"], accounts, {"target": "cpu/x", "cores": 2, "python": "3"})


def test_ratios_and_the_seeds_rows_are_computed_from_the_accounts() -> None:
    ledger = _ledger()
    assert ledger.ratios()["cold_over_artifact"] == 4 / 8
    assert ledger.ratios()["jit_warm_over_artifact"] == 5 / 8
    assert ledger.ratios()["regional_warm_over_artifact"] == 7 / 8
    assert ledger.ratios()["line_eager_over_artifact"] == (1.5 + 3 + 4) / (1.5 + 8 + 4)
    assert ledger.ratios()["artifact_minus_eager_s"] == 5
    assert dict(ledger.seed_rows())["aot iteration speed"] == "48.000 it/s (+500.0%)"
    assert dict(ledger.seed_rows())["aot warm-up with artifact time"] == "12.000 s"


def test_the_table_has_a_row_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(_ledger())
    rows = [row for line in capsys.readouterr().out.splitlines() if (row := line.split("\t"))[0] in WAYS]
    assert [row[0] for row in rows] == 2 * list(WAYS)
    assert [len(row) for row in rows] == len(WAYS) * [13] + len(WAYS) * [7]


def test_segments_add_up() -> None:
    account = Account(Way.ARTIFACT, 1.0, {"find": 0.25, "load": 0.5}, dict.fromkeys(BEFORE, 0.5), [2.0, 3.0], {})
    assert sum(segments(account).values()) == account.startup_s == 6
    account.pipeline_first_s = 4.0
    assert sum(line(account).values()) == account.line_s == 11.5


def test_ways_that_were_not_measured_have_no_ratios_and_no_rows() -> None:
    ledger = _ledger()
    for way in WAYS:
        if way not in COMPARED:
            del ledger.accounts[way]
    assert set(ledger.ratios()) == {
        "artifact_minus_eager_s", "line_eager_over_artifact", "steady_artifact_over_eager", "max_abs_error", "relative_l2_error",
    }  # fmt: skip
    assert [name for name, _ in ledger.seed_rows() if "torch.compile" in name or "repeated" in name] == []
    assert "None" not in page(ledger)


def test_outputs_of_an_encoder_are_compared_between_processes_as_any(tmp_path: Path) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    ours, other = ([BaseModelOutput(last_hidden_state=torch.full((2, 3), value))] for value in (1.0, 2.0))
    assert _compared(ours, tmp_path / "outputs", Way.EAGER)["relative_l2"] == 0
    assert _compared(other, tmp_path / "outputs", Way.ARTIFACT)["relative_l2"] == 1
