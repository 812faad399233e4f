"""What a person sees of long work."""

import time

import pytest

from aot.cli.text import progress
from aot.compiler.stage import Stage

FIRST, SECOND = "compile graph 1 of 2, unet", "compile graph 2 of 2, vae.decoder"


def test_in_a_log_each_finished_stage_is_one_line_with_its_own_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as show:
        for told in (Stage(FIRST, expected=60), Stage(SECOND), Stage(SECOND, 3.0), Stage(FIRST, 97.2)):
            show(told)
    assert capsys.readouterr().err == f"{SECOND}: 3.0 s\n{FIRST}: 97.2 s\n"


def test_on_a_terminal_what_is_under_way_is_shown_with_what_it_took_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress() as show:
        show(Stage(FIRST, expected=60))
        show(Stage(SECOND))
        time.sleep(0.5)  # it is drawn ten times a second
        drawn = capsys.readouterr().err
        show(Stage(FIRST, 97.2))
    assert FIRST in drawn
    assert SECOND in drawn
    assert "of about 60 s" in drawn
    assert f"{FIRST}: 97.2 s" in capsys.readouterr().err
