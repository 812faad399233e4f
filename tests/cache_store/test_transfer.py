"""Transfers between stores whose bytes come as they please."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from aot.cache_store import patience
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Denied, Missing, StoreFull, TimedOut, Unreachable
from aot.cache_store.local import LocalStore
from aot.cache_store.memory import MemoryStore
from aot.cache_store.patience import ATTEMPTS, Deadline, retried
from aot.cache_store.store import read_manifest
from aot.cache_store.transfer import push
from tests.artifacts import bring, small


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)


class Remote(MemoryStore):
    """A store whose blobs are read through `spoil`, which knows how often it was asked."""

    spoil: Callable[[bytes, int], BinaryIO] = staticmethod(lambda data, _: io.BytesIO(data))
    asked = 0

    @contextmanager
    def open_blob(self, digest: Digest) -> Iterator[BinaryIO]:  # type: ignore[override]
        self.asked += 1
        yield self.spoil(self.blobs[digest], self.asked)


class Cut(io.BytesIO):
    """Ends in an error after so many bytes of each reading."""

    def __init__(self, data: bytes, after: int) -> None:
        super().__init__(data)
        self._left = after

    def read(self, size: int | None = -1, /) -> bytes:
        if not self._left:
            raise Unreachable("the connection was reset.")
        data = super().read(min(self._left, size or 0))
        self._left -= len(data)
        return data


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    remote = Remote("memory://remote")
    ref, manifest, blobs = small(tmp_path, text="".join(map(str, range(4000))))
    remote.commit(ref, manifest.encode(), blobs)
    return remote


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "home")


def pull(remote: Remote, local: LocalStore, **options: object) -> None:
    ((_, digest),) = remote.refs()
    bring(read_manifest(remote, digest), remote, local, **options)


def test_a_transfer_that_gains_goes_on_however_often_it_is_cut(remote: Remote, local: LocalStore) -> None:
    remote.spoil = lambda data, _: cast(BinaryIO, Cut(data, 300))
    seen: list[int] = []
    pull(remote, local, told=seen.append)
    (size,) = [len(data) for data in remote.blobs.values()]
    assert remote.asked > ATTEMPTS
    assert sum(seen) == size


def test_a_transfer_that_gains_nothing_is_given_up_and_what_came_is_kept(remote: Remote, local: LocalStore) -> None:
    remote.spoil = lambda data, asked: cast(BinaryIO, Cut(data, 100 if asked == 1 else 0))
    with pytest.raises(Unreachable, match="reset"):
        pull(remote, local)
    assert remote.asked == ATTEMPTS + 1
    (part,) = (local.root / "v1" / "parts").iterdir()
    assert part.stat().st_size == 100
    assert list(local.refs()) == []


def test_a_partial_file_that_was_spoilt_is_begun_anew(remote: Remote, local: LocalStore) -> None:
    ((digest, _),) = remote.blobs.items()
    (local.root / "v1" / "parts" / digest.hex).write_bytes(b"nothing of it")
    pull(remote, local)
    assert remote.asked == 2
    assert local.blob_path(digest)


def test_bytes_that_are_not_those_promised_are_never_kept(remote: Remote, local: LocalStore) -> None:
    for spoilt in (lambda data: data[:-1] + b"x", lambda data: data + b"x", lambda data: b"x" * len(data)):
        remote.spoil = lambda data, _, spoilt=spoilt: io.BytesIO(spoilt(data))  # type: ignore[misc]
        with pytest.raises(Corrupt):
            pull(remote, local)
        assert list((local.root / "v1" / "parts").iterdir()) == list((local.root / "v1" / "blobs").iterdir()) == []


def test_a_deadline_ends_it_and_the_next_goes_on(remote: Remote, local: LocalStore) -> None:
    with pytest.raises(TimedOut, match="this pull took more than 0 s"):
        pull(remote, local, deadline=Deadline(0.0, "this pull"))
    pull(remote, local)


def test_a_disk_without_room_is_told_before_a_byte_is_asked_for(remote: Remote, local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("aot.cache_store.transfer.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StoreFull, match="1000 are free"):
        pull(remote, local)
    assert remote.asked == 0


def test_another_process_that_holds_the_download_for_too_long_is_told(remote: Remote, local: LocalStore) -> None:
    ((digest, _),) = remote.blobs.items()
    with local.receiving(digest, seconds=1), pytest.raises(TimedOut, match="another process"):
        pull(remote, LocalStore(local.root), deadline=Deadline(0.2, "this pull"))


def test_a_push_hashes_before_it_sends(local: LocalStore, tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    with pytest.raises(Missing):
        push(ref, source=local, target=MemoryStore())
    local.commit(ref, manifest.encode(), blobs)
    path = local.blob_path(manifest.layers[0].digest)
    assert path
    path.chmod(0o600)
    path.write_bytes(b"x" * manifest.layers[0].size)
    target = MemoryStore()
    with pytest.raises(Corrupt):
        push(ref, source=local, target=target)
    path.unlink()
    with pytest.raises(Missing):
        push(ref, source=local, target=target)
    assert list(target.refs()) == []


def test_what_waiting_cannot_mend_is_not_tried_again() -> None:
    for error in (Denied("no"), StoreFull("no"), TimedOut("no"), Corrupt("no")):
        tries = []

        def fails(error: Exception = error, tries: list[int] = tries) -> None:
            tries.append(1)
            raise error

        with pytest.raises(type(error)):
            retried(fails, deadline=Deadline(5, "it"))
        assert len(tries) == 1
