import random
from pathlib import Path

import pytest

from aot.cache_store.errors import Corrupt, Missing
from aot.cache_store.fsck import examine
from aot.cache_store.local import LocalStore
from aot.cache_store.store import Entry, read_listed
from tests.artifacts import small


def found(store: LocalStore) -> set[str]:
    return {entry.key.get("part", "unreadable") for entry in store.entries()}


def commit(store: LocalStore, folder: Path, key: str) -> None:
    ref, manifest, blobs = small(folder, key=key)
    store.commit(ref, manifest.encode(), blobs)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "home")


def test_entries_follow_every_change_at_once_also_of_another_process(store: LocalStore, tmp_path: Path) -> None:
    """However quickly one follows another: a directory's time stamp is coarser than that."""
    other = LocalStore(store.root)
    for number in range(20):
        commit(store, tmp_path, str(number))
        assert found(other) == {str(each) for each in range(number + 1)}
    for ref, _ in list(store.refs()):
        store.remove(ref)
    assert found(other) == set()


def test_a_ref_that_moves_is_seen_although_its_name_stays(store: LocalStore, tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        ref, manifest, blobs = small(tmp_path, text=text)
        digest = store.commit(ref, manifest.encode(), blobs)
        assert list(store.entries()) == [Entry.of(ref, digest, manifest)]


def test_what_nobody_asks_for_is_left_out(store: LocalStore, tmp_path: Path) -> None:
    for key in ("apple", "pear", "plum"):
        commit(store, tmp_path, key)
    assert {entry.key["part"] for entry in store.entries(about=["apple", "plum"])} == {"apple", "plum"}
    assert {entry.key["part"] for entry in store.entries(about=["apple", "plum"], within={"part": "plum"})} == {"plum"}
    assert list(store.entries(about=["cherry"])) == list(store.entries(within={"part": "cherry"})) == []
    assert len(list(store.entries(newest=2))) == 2


@pytest.mark.parametrize("content", [b"", b"not an index at all, but longer than nothing", b"aot-index 1 00000000\n{}"])
def test_a_damaged_index_is_made_anew(store: LocalStore, tmp_path: Path, content: bytes) -> None:
    commit(store, tmp_path, "x")
    assert found(store) == {"x"}
    (store.root / "v1" / "index").write_bytes(content)
    assert found(store) == found(store) == {"x"}


def test_an_index_that_cannot_be_written_is_done_without(store: LocalStore, tmp_path: Path) -> None:
    commit(store, tmp_path, "x")
    (store.root / "v1" / "index").mkdir()
    assert found(store) == {"x"}


def test_an_index_of_another_version_is_made_anew(store: LocalStore, tmp_path: Path) -> None:
    commit(store, tmp_path, "x")
    assert found(store) == {"x"}
    path = store.root / "v1" / "index"
    path.write_bytes(path.read_bytes().replace(b"aot-index 1", b"aot-index 9"))
    assert found(store) == {"x"}


def test_an_artifact_whose_manifest_cannot_be_read_is_told_of_and_read_again_later(store: LocalStore, tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    digest = store.commit(ref, manifest.encode(), blobs)
    path = store.root / "v1" / "manifests" / digest.hex
    raw = path.read_bytes()
    path.unlink()
    assert found(store) == {"unreadable"}
    with pytest.raises(Missing):
        store.manifest(digest)
    path.write_bytes(raw)
    store.commit(ref, raw, blobs)
    assert found(store) == {"x"}


def test_a_turned_bit_anywhere_in_the_index_hides_nothing(store: LocalStore, tmp_path: Path) -> None:
    for key in ("apple", "pear"):
        commit(store, tmp_path, key)
    assert found(store) == {"apple", "pear"}
    path = store.root / "v1" / "index"
    sound, chance = path.read_bytes(), random.Random(0)
    inhabited = [place for place, byte in enumerate(sound) if byte]
    for place in chance.sample(inhabited, 400):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << chance.randrange(8))]) + sound[place + 1 :])
        assert {entry.key["part"] for entry in store.entries(within={"part": "apple"})} == {"apple"}
        assert found(store) == {"apple", "pear"}


def test_a_damaged_ref_is_told_of_and_is_no_silent_miss(store: LocalStore, tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    store.commit(ref, manifest.encode(), blobs)
    path = store.root / "v1" / "refs" / ref.name / ref.key.hex
    path.chmod(0o600)
    path.write_bytes(b"\xff\x00 nothing that one could read")
    (entry,) = store.entries()
    assert entry.key == {}
    with pytest.raises(Corrupt) as caught:
        read_listed(store, entry)
    assert caught.value.culprit == str(ref)
    assert [finding.culprit for finding in examine(store)] == [str(ref)]
    (path.parent / "stray").write_text("no ref")
    assert len(list(store.entries())) == 1
