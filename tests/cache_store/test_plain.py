"""Something else in the place of a file: damage like any other, never waited for, never in the way of the next commit."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt
from aot.cache_store.fsck import examine
from aot.cache_store.history import check_history
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Layer
from aot.cache_store.memory import MemoryStore
from aot.cache_store.patience import Deadline
from aot.cache_store.plain import in_the_way, is_plain, read_plain
from aot.cache_store.store import Ref
from aot.cache_store.transfer import fetch
from tests.artifacts import small


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's address is short
        try:
            listening.bind(path.name)
        finally:
            os.chdir(here)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


OBSTACLES: dict[str, Callable[[Path], None]] = {"directory": Path.mkdir, "fifo": os.mkfifo, "link": _link, "socket": _socket}
PLACES = ("blobs", "manifests", "signatures", "origins", "refs", "index")


@pytest.fixture(params=OBSTACLES)
def obstacle(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts something in a file's place."""

    def put(path: Path) -> None:
        if path.exists():
            path.unlink()
        OBSTACLES[request.param](path)

    return put


def _place(store: LocalStore, kind: str, ref: Ref, digest: Digest, blob: Digest) -> Path:
    tree = store.root / "v1"
    where = {"blobs": blob.hex, "refs": f"{ref.name}/{ref.key.hex}", "index": ""}
    return tree / kind / where.get(kind, digest.hex) if kind != "index" else tree / kind


def test_what_is_no_regular_file_is_corrupt_at_once(tmp_path: Path, obstacle: Callable[[Path], None]) -> None:
    obstacle(tmp_path / "file")
    assert (is_plain(tmp_path / "file"), in_the_way(tmp_path / "file")) == (False, True)
    with pytest.raises(Corrupt, match="not a regular file") as raised:
        read_plain(tmp_path / "file", culprit="sha256:0")
    assert raised.value.culprit == "sha256:0"


@pytest.mark.parametrize("kind", PLACES)
def test_it_is_found_set_aside_and_committed_over(tmp_path: Path, obstacle: Callable[[Path], None], kind: str) -> None:
    ref, manifest, blobs = small(tmp_path)
    store = LocalStore(tmp_path / "home")
    digest = store.commit(ref, manifest.encode(), blobs, envelope=None, origins=("hf://a/b",))
    (blob,) = blobs
    list(store.entries())
    path = _place(store, kind, ref, digest, blob)
    obstacle(path)
    if kind == "index":  # a hint: made again
        assert [entry.ref for entry in store.entries()] == [ref]
    else:
        with pytest.raises(Corrupt, match="not a regular file") as raised:
            store.resolve(ref), store.manifest(digest), store.envelope(digest), store.origins(digest)
            with store.open_blob(blob) as file:
                file.read()
        store.quarantine(raised.value.culprit)
        assert not in_the_way(path)
        assert list(store.refs()) == []
    obstacle(path)
    assert store.commit(ref, manifest.encode(), blobs) == digest
    assert list(examine(store)) == []
    assert store.resolve(ref) == digest


def test_a_damaged_ref_is_told_by_name_and_does_not_hide_the_others(tmp_path: Path, obstacle: Callable[[Path], None]) -> None:
    store = LocalStore(tmp_path / "home")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    ref, manifest, blobs = small(tmp_path / "one")
    other, second, more = small(tmp_path / "two", key="y")
    for each in ((ref, manifest.encode(), blobs), (other, second.encode(), more)):
        store.commit(*each)
    obstacle(store.root / "v1" / "refs" / ref.name / ref.key.hex)
    assert [found for found, _ in store.refs()] == [other]
    assert [str(finding.culprit) for finding in examine(store)] == [str(ref)]


def test_a_download_goes_past_what_is_in_the_place_of_its_partial_file(tmp_path: Path, obstacle: Callable[[Path], None]) -> None:
    ref, manifest, blobs = small(tmp_path)
    source, store = MemoryStore(), LocalStore(tmp_path / "home")
    source.commit(ref, manifest.encode(), blobs)
    layer: Layer = manifest.layers[0]
    obstacle(store.root / "v1" / "parts" / layer.digest.hex)
    fetch(layer, source, store, deadline=Deadline(30, "the test"))
    assert store.blob_path(layer.digest)


def test_what_was_seen_of_a_remote_is_forgotten_rather_than_waited_for(tmp_path: Path, obstacle: Callable[[Path], None]) -> None:
    class Numbered(MemoryStore):
        def state(self) -> tuple[int, str]:
            return 7, "list"

    remote, store = Numbered(), LocalStore(tmp_path / "home")
    check_history(remote, store)
    (note,) = (store.root / "v1" / "remotes").iterdir()
    obstacle(note)
    check_history(remote, store)
    assert is_plain(note)
