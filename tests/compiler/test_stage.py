import pytest

from aot.compiler.stage import Stage, stage


def test_a_stage_is_told_when_it_begins_and_when_it_is_done() -> None:
    told: list[Stage] = []
    with stage(told.append, "compile"):
        assert [str(one) for one in told] == ["compile"]
    assert [one.what for one in told] == ["compile"] * 2
    assert told[1].seconds is not None
    assert str(Stage("compile", 1.25)) == "compile: 1.2 s"


def test_what_fails_is_not_told_as_done() -> None:
    told: list[Stage] = []
    with pytest.raises(ValueError, match="no"), stage(told.append, "compile"):
        raise ValueError("no")
    assert [one.seconds for one in told] == [None]


def test_a_work_processs_event_inverts() -> None:
    told = Stage("compile", 2.0, component="vae.decoder")
    assert Stage.of_event(told.to_event()) == told
