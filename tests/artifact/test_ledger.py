"""What the account keeps of misses, when every call differs."""

import logging
import threading

import pytest

from aot.artifact.ledger import Ledger


def test_a_miss_is_counted_each_time_and_logged_the_first(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    with caplog.at_level(logging.WARNING, "aot"):
        for sentence in ("height differs", "width differs", "height differs"):
            ledger.missed(sentence)
    assert ledger.misses == {"height differs": 2, "width differs": 1}
    assert caplog.messages == ["height differs", "width differs"]


def test_a_hundred_sentences_are_kept_and_further_ones_are_counted_and_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    with caplog.at_level(logging.WARNING, "aot"):
        for _ in range(2):
            for number in range(Ledger.SENTENCES + 50):
                ledger.missed(f"length {number} is none of those built")
    assert len(ledger.misses) == Ledger.SENTENCES + 1
    assert ledger.misses["length 0 is none of those built"] == 2
    assert ledger.misses[Ledger.FURTHER] == 100
    assert "length 100 is none of those built" not in ledger.misses
    assert ledger.to_json()["misses"] == dict(ledger.misses)
    assert caplog.messages == [*(f"length {number} is none of those built" for number in range(100)), Ledger.FURTHER]


@pytest.mark.parametrize(("length", "kept"), [(499, "x" * 499), (500, "x" * 500), (501, "x" * 499 + "…"), (10**6, "x" * 499 + "…")])
def test_a_sentence_is_kept_and_logged_to_its_five_hundredth_character(length: int, kept: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    with caplog.at_level(logging.WARNING, "aot"):
        ledger.missed("x" * length)
    assert list(ledger.misses) == caplog.messages == [kept]


def test_threads_that_miss_at_once_keep_no_more_than_one_sentence_each_beyond() -> None:
    ledger, threads = Ledger(), 8

    def miss(own: int) -> None:
        for number in range(1000):
            ledger.missed(f"{own} {number}")

    running = [threading.Thread(target=miss, args=(own,)) for own in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert Ledger.SENTENCES < len(ledger.misses) <= Ledger.SENTENCES + 1 + threads
    assert ledger.misses[Ledger.FURTHER] > 0
