import errno
import fcntl
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, RootRefused, StoreFull, Unreachable
from aot.cache_store.layer import verify
from aot.cache_store.local import LocalStore
from aot.cache_store.location import open_store
from aot.cache_store.memory import MemoryStore
from aot.cache_store.root import default_root
from aot.cache_store.store import Store, read_manifest
from tests.artifacts import bring, small
from tests.cache_store.faults import refuse
from tests.cache_store.store_contract import WritingContract


class TestLocalStore(WritingContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "home")


def check_invariant(store: Store) -> None:
    """A ref leads to a manifest, and a manifest to every one of its layers, byte for byte."""
    for _, digest in store.refs():
        for layer in read_manifest(store, digest).layers:
            with store.open_blob(layer.digest) as blob:
                verify(layer, blob)


def test_everything_is_private_and_blobs_are_read_only(tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    LocalStore(tmp_path / "home").commit(ref, manifest.encode(), blobs)
    for path in (tmp_path / "home").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    (blob,) = (tmp_path / "home" / "v1" / "blobs").iterdir()
    assert blob.stat().st_mode & 0o777 == 0o400


def test_a_root_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o777)
    (tmp_path / "home").chmod(0o777)
    with pytest.raises(RootRefused, match="0777"):
        LocalStore(tmp_path / "home")


def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    with pytest.raises(RootRefused, match="link"):
        LocalStore(tmp_path / "home")


def test_a_root_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalStore(tmp_path / "home")
    if os.getuid() == 0:
        os.chown(tmp_path / "home", 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RootRefused, match="belongs to user"):
        LocalStore(tmp_path / "home")


def test_a_root_that_cannot_be_made_is_unreachable_and_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match=str(tmp_path / "file")):
        LocalStore(tmp_path / "file" / "home")


def test_a_ref_that_holds_no_digest_is_corrupt_when_asked_for_and_not_listed(tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    store = LocalStore(tmp_path / "home")
    store.commit(ref, manifest.encode(), blobs)
    path = tmp_path / "home" / "v1" / "refs" / ref.name / ref.key.hex
    path.chmod(0o600)
    path.write_text("garbage\n")
    with pytest.raises(Corrupt):
        store.resolve(ref)
    assert list(store.refs()) == []


def test_locations() -> None:
    with pytest.raises(Malformed, match="nosuch"):
        open_store("nosuch://bucket/prefix")
    with pytest.raises(Malformed, match="hf://ORG/REPO"):
        open_store("hf://only-one-word")
    assert str(open_store("hf://acme/artifacts@v1")) == "hf://acme/artifacts@v1"
    assert default_root({"AOT_HOME": "/somewhere"}) == Path("/somewhere")
    assert default_root({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/aot")
    assert default_root({}) == Path.home() / ".cache" / "aot"


class _Faulty:
    """Fails the n-th call of the file operations that a commit makes, with one errno: SQLite's method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int, code: int) -> None:
        self.count, self._at, self._code = 0, at, code
        for owner, name in ((os, "open"), (os, "fsync"), (Path, "rename"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                raise OSError(self._code, os.strerror(self._code))
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_a_fault_at_any_file_operation_of_a_commit_leaves_all_or_nothing(tmp_path: Path, code: int) -> None:
    ref, manifest, blobs = small(tmp_path)
    for at in range(1, 200):
        home = tmp_path / f"home-{at}"
        store = LocalStore(home)
        with pytest.MonkeyPatch.context() as patch:
            faults = _Faulty(patch, at=at, code=code)
            try:
                store.commit(ref, manifest.encode(), blobs)
            except (Unreachable, StoreFull) as error:
                assert isinstance(error, StoreFull) == (code == errno.ENOSPC)
        check_invariant(store)
        assert store.commit(ref, manifest.encode(), blobs) == Digest.of(manifest.encode())
        check_invariant(store)
        if faults.count < at:
            assert at > 8, "the commit made fewer operations than it must"
            return
    pytest.fail("the commit never ran to its end")


def _commit_and_collect_forever(home: Path, folder: Path) -> None:
    store = LocalStore(home)
    while True:
        for text in ("one", "two", "three"):
            ref, manifest, blobs = small(folder, text=text, key=text)
            store.commit(ref, manifest.encode(), blobs)
        for ref, _ in list(store.refs()):
            store.remove(ref)
        store.collect()


def test_killing_a_process_that_commits_and_collects_never_breaks_the_store(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(15):
        folder = tmp_path / f"work-{number}"
        folder.mkdir()
        child = multiprocessing.get_context("fork").Process(target=_commit_and_collect_forever, args=(home, folder))
        child.start()
        time.sleep(0.02 + 0.013 * number)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        check_invariant(LocalStore(home))
    ref, manifest, blobs = small(tmp_path)
    store = LocalStore(home)
    store.commit(ref, manifest.encode(), blobs)
    check_invariant(store)


def test_collect_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "home")
    dead = multiprocessing.get_context("fork").Process(target=int)
    dead.start()
    dead.join()
    left = tmp_path / "home" / "v1" / "tmp" / f"{dead.pid}-abcd"
    left.mkdir()
    (left / "part").write_bytes(b"12345")
    with store.temporary() as mine:
        assert store.collect() == 5
        assert mine.is_dir()
    assert not left.exists()


def test_a_collect_beside_commits_takes_nothing_that_is_referenced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    LocalStore(home)
    folders = [tmp_path / f"work-{number}" for number in range(3)]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_commit_many, args=(home, folder, 25)) for folder in folders]
    for folder, child in zip(folders, children, strict=True):
        folder.mkdir()
        child.start()
    store = LocalStore(home)
    while any(child.is_alive() for child in children):
        store.collect()
    assert [child.exitcode for child in children] == [0, 0, 0]
    check_invariant(store)
    assert len(list(store.refs())) == 25


def _commit_many(home: Path, folder: Path, count: int) -> None:
    store = LocalStore(home)
    for number in range(count):
        ref, manifest, blobs = small(folder, text=str(number), key=str(number))
        store.commit(ref, manifest.encode(), blobs)


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS without its lock daemon, Lustre or a FUSE mount: no locks, and directories that cannot be brought to the disk."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refuse(errno.EINVAL)()
        sync(descriptor)

    monkeypatch.setattr(fcntl, "flock", refuse(request.param))
    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.usefixtures("no_locks")
def test_a_disk_without_locks_costs_work_and_no_more(tmp_path: Path) -> None:
    remote = MemoryStore("memory://remote")
    ref, manifest, blobs = small(tmp_path, text="x" * 5000)
    raw = manifest.encode()
    remote.commit(ref, raw, blobs)
    store, (layer,) = LocalStore(tmp_path / "store"), manifest.layers
    with store.building(ref) as waited, LocalStore(store.root).building(ref) as again:
        assert (waited, again) == (False, False)
    with store.receiving(layer.digest, seconds=0) as one, store.receiving(layer.digest, seconds=0) as other:
        assert one
        assert other
        assert one != other
        other.write_bytes(b"some of it")
    assert not other.exists()
    bring(manifest, remote, store)
    check_invariant(store)
    store.collect()
    check_invariant(store)
    assert [found for found, _ in store.refs()] == [ref]
    assert not list((store.root / "v1" / "tmp").iterdir())


def test_a_process_that_only_sees_whether_there_are_locks_is_not_taken_for_a_holder(tmp_path: Path) -> None:
    ref, _, _ = small(tmp_path)
    store = LocalStore(tmp_path / "home")
    with store.building(ref):
        pass
    (lock,) = (store.root / "v1" / "locks").glob("*.lock")
    with lock.open() as probing:
        fcntl.flock(probing, fcntl.LOCK_SH)
        threading.Timer(0.02, fcntl.flock, (probing, fcntl.LOCK_UN)).start()
        with store.building(ref) as waited:
            assert not waited
