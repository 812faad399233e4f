import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aot.cache_store.cached import CachedStore
from aot.cache_store.digest import Digest
from aot.cache_store.errors import RolledBack, Unreachable
from aot.cache_store.layer import verify
from aot.cache_store.local import LocalStore
from aot.cache_store.memory import MemoryStore
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import Entry, Ref, read_manifest
from tests.artifacts import small
from tests.cache_store.store_contract import ReadingContract


class NumberedStore(MemoryStore):
    """A remote whose states are numbered, and that can go away."""

    serial = 1
    away = False

    def state(self) -> tuple[int, str]:
        return self.serial, str(sorted(self.refs()))

    def entries(self, **_: Any) -> Iterator[Entry]:  # type: ignore[override]
        if self.away:
            raise Unreachable("memory: is away.")
        return super().entries()


@pytest.fixture
def filled() -> NumberedStore:
    return NumberedStore("memory://remote")


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "home")


@pytest.fixture
def store(filled: NumberedStore, local: LocalStore) -> CachedStore:
    return CachedStore(filled, local)


class TestCachedStore(ReadingContract):
    @pytest.fixture
    def filled(self, store: CachedStore) -> MemoryStore:
        assert isinstance(store.remote, MemoryStore)
        return store.remote

    @pytest.fixture
    def store(self, tmp_path: Path) -> CachedStore:
        return CachedStore(MemoryStore("memory://remote"), LocalStore(tmp_path / "home"))


def read(store: CachedStore, digest: Digest) -> None:
    for layer in read_manifest(store, digest).layers:
        with store.open_blob(layer.digest) as blob:
            verify(layer, blob)


def test_what_was_read_once_is_here_whole_with_its_signatures_and_origin(store: CachedStore, filled: MemoryStore, tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    envelope = SigningKey.of_machine(tmp_path).sign(manifest.encode())
    digest = filled.commit(ref, manifest.encode(), blobs, envelope=envelope)
    read(store, digest)
    assert store.local.resolve(ref) == digest
    assert store.local.origins(digest) == {"memory://remote"}
    assert store.local.envelope(digest) == envelope
    filled.blobs.clear()
    read(CachedStore(filled, store.local), digest)


def test_without_the_remote_what_was_pulled_from_it_is_served(
    store: CachedStore, filled: NumberedStore, local: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ref, manifest, blobs = small(tmp_path)
    digest = filled.commit(ref, manifest.encode(), blobs)
    own, other, blobs = small(tmp_path, key="built here", text="other")
    local.commit(own, other.encode(), blobs)
    filled.away = True
    with pytest.raises(Unreachable):
        list(store.entries())
    filled.away = False
    read(store, digest)
    filled.away = True
    with caplog.at_level(logging.WARNING, "aot"):
        assert [entry.ref for entry in store.entries()] == [ref]
    assert "AOT-E204" in caplog.text


def test_a_remote_that_says_nothing_is_asked_once_and_not_waited_for_where_there_is_something_here(
    store: CachedStore, filled: NumberedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would never answer: that this returns at all is the test."""
    monkeypatch.setattr("aot.cache_store.cached.HAVE_SECONDS", 0.1)
    ref, manifest, blobs = small(tmp_path)
    read(store, filled.commit(ref, manifest.encode(), blobs))
    answering, asked = threading.Event(), list[str]()

    def silent(*_: Any, **__: Any) -> Any:
        asked.append("")
        answering.wait()
        raise Unreachable("memory: is away.")

    monkeypatch.setattr(filled, "entries", silent)
    monkeypatch.setattr(filled, "envelope", silent)
    with caplog.at_level(logging.WARNING, "aot"):
        for _ in range(2):
            (entry,) = store.entries()
            assert (entry.ref, store.envelope(entry.digest)) == (ref, None)
    answering.set()
    assert len(asked) == len(caplog.records) == 1
    assert "AOT-E209" in caplog.text


def test_a_corrupt_blob_is_quarantined_and_refetched(store: CachedStore, filled: MemoryStore, tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    digest = filled.commit(ref, manifest.encode(), blobs)
    read(store, digest)
    (layer,) = manifest.layers
    path = store.local.blob_path(layer.digest)
    assert path
    path.chmod(0o600)
    path.write_bytes(b"x" * layer.size)
    store.quarantine(str(layer.digest))
    assert store.local.resolve(ref) is None
    read(store, digest)
    assert store.local.resolve(ref) == digest


def test_an_older_list_than_was_seen_is_told_and_what_is_here_goes_on_being_served(
    store: CachedStore, filled: NumberedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ref, manifest, blobs = small(tmp_path)
    filled.serial = 7
    digest = filled.commit(ref, manifest.encode(), blobs)
    list(store.entries())
    filled.serial = 6
    with pytest.raises(RolledBack, match=r"write 6 .* showed 7"):
        list(store.entries())
    filled.serial = 7
    read(store, digest)
    filled.serial = 6
    with caplog.at_level(logging.WARNING, "aot"):
        assert [entry.digest for entry in store.entries()] == [digest]
    assert "AOT-E210" in caplog.text


def test_another_list_of_the_same_number_is_told_too(store: CachedStore, filled: NumberedStore, tmp_path: Path) -> None:
    list(store.entries())
    ref, manifest, blobs = small(tmp_path)
    filled.commit(ref, manifest.encode(), blobs)
    with pytest.raises(RolledBack):
        list(store.entries())
    filled.serial = 2
    assert [entry.ref for entry in store.entries()] == [ref] == [Ref.of(manifest)]
