"""The start-up ledger, for real, of the session's artifact. Nothing here asserts a time."""

import json
import re
from pathlib import Path

import pytest

from aot.report import segments
from cache_store.local import LocalStore
from tests.test_cli import run


def test_bench_measures_every_way_and_writes_a_self_contained_page(store: LocalStore, tmp_path: Path) -> None:
    page = tmp_path / "ledger.html"
    done = run(
        "bench", "pixart-alpha", "--variant", "tiny", "--gpu", "cpu", "--shape", "64x64", "--shape", "64x96",
        "--rounds", "1", "--steps", "3", "--json", "--html", str(page), home=store.root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ledger = json.loads(done.stdout)
    assert list(ledger["ways"]) == ["eager", "cold", "jit-warm", "artifact"]
    for name in ("cold_over_artifact", "jit_warm_over_artifact", "artifact_minus_eager_s", "steady_artifact_over_jit"):
        assert isinstance(ledger["ratios"][name], float)
    assert ledger["ratios"]["relative_l2_error"] <= 1e-5
    artifact = ledger["ways"]["artifact"]
    assert set(artifact["parts_s"]) == {"find", "verify", "materialise", "load"}
    assert artifact["startup_s"] == pytest.approx(artifact["setup_s"] + sum(artifact["first_call_s"]))
    assert not artifact["inductor_imported"]
    assert len(ledger["seed_rows"]) == 10
    assert len(ledger["calls"]) == len(artifact["steady_s"]) == 4

    html = page.read_text()
    assert re.findall(r"(?:src|href)=|url\(|@import", html) == []
    assert all(f"<div>{way}</div>" in html for way in ledger["ways"])


def test_segments_add_up() -> None:
    from aot.bench import Account

    account = Account("artifact", 1.0, {"find": 0.25, "load": 0.5}, [2.0, 3.0], {})
    assert sum(segments(account).values()) == account.startup_s == 6
