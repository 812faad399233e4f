"""The start-up ledger, for real, of the session's artifact. Nothing here asserts a time."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from aot.benchmark.bench import Account, StartupLedger
from aot.benchmark.measure import _compared
from aot.benchmark.measurement import WAYS, Way
from aot.benchmark.report import page, segments
from aot.cli.bench import print_ledger
from tests.cli.test_cli import run
from tests.conftest import REGIONAL, Regional, request_for

COMPILED = pytest.param("eager,cold,jit-warm,artifact", marks=pytest.mark.slow)


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
        ratios |= {"cold_over_artifact", "jit_warm_over_artifact", "steady_artifact_over_jit"}
    assert ratios <= set(ledger["ratios"])
    assert ledger["ratios"]["relative_l2_error"] <= 1e-5
    artifact = ledger["ways"]["artifact"]
    assert set(artifact["parts_s"]) == {"find", "verify", "materialise", "compare", "load"}
    assert artifact["startup_s"] == pytest.approx(artifact["setup_s"] + sum(artifact["first_call_s"]))
    assert not artifact["inductor_imported"]
    assert len(ledger["seed_rows"]) == (10 if "cold" in ways else 8)
    assert len(ledger["calls"]) == len(artifact["steady_s"]) == 1

    html = page.read_text()
    assert re.findall(r"(?:src|href)=|url\(|@import", html) == []
    assert all(f"<div>{way}</div>" in html for way in ledger["ways"])


def _ledger() -> StartupLedger:
    accounts = {}
    for number, way in enumerate(WAYS):
        account = Account(
            way, 1.0 + number, {"find": 0.25} if way == "artifact" else {}, [2.0], {"max_abs": 0.5, "relative_l2": 1e-6, "psnr": None}
        )
        account.steady_s, account.pipeline_first_s, account.pipeline_s, account.iterations_per_s = [0.5], 4.0, 3.0, 8.0 * (number + 1)
        accounts[way] = account
    return StartupLedger(request_for(), "sha256:0", 1 << 20, ["a call"], accounts, {"target": "cpu/x", "cores": 2, "python": "3"})


def test_ratios_and_the_seeds_rows_are_computed_from_the_accounts() -> None:
    ledger = _ledger()
    assert ledger.ratios()["cold_over_artifact"] == 4 / 6
    assert ledger.ratios()["jit_warm_over_artifact"] == 5 / 6
    assert ledger.ratios()["artifact_minus_eager_s"] == 3
    assert dict(ledger.seed_rows())["aot iteration speed"] == "32.000 it/s (+300.0%)"
    assert dict(ledger.seed_rows())["aot warm-up with artifact time"] == "10.000 s"


def test_the_table_has_a_row_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(_ledger())
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[0] in WAYS] == list(WAYS)
    assert all(len(row) == 13 for row in rows if row[0] in WAYS)


def test_segments_add_up() -> None:
    account = Account(Way.ARTIFACT, 1.0, {"find": 0.25, "load": 0.5}, [2.0, 3.0], {})
    assert sum(segments(account).values()) == account.startup_s == 6


def test_ways_that_were_not_measured_have_no_ratios_and_no_rows() -> None:
    ledger = _ledger()
    for way in (Way.COLD, Way.JIT_WARM):
        del ledger.accounts[way]
    assert set(ledger.ratios()) == {
        "artifact_minus_eager_s", "steady_artifact_over_eager", "max_abs_error", "relative_l2_error",
    }  # fmt: skip
    assert [name for name, _ in ledger.seed_rows() if "torch.compile" in name] == []
    assert "None" not in page(ledger)


def test_outputs_of_an_encoder_are_compared_between_processes_as_any(tmp_path: Path) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    ours, other = ([BaseModelOutput(last_hidden_state=torch.full((2, 3), value))] for value in (1.0, 2.0))
    assert _compared(ours, tmp_path / "outputs", Way.EAGER)["relative_l2"] == 0
    assert _compared(other, tmp_path / "outputs", Way.ARTIFACT)["relative_l2"] == 1
