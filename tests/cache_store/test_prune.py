from datetime import UTC, datetime, timedelta
from pathlib import Path

from aot.cache_store.memory import MemoryStore
from aot.cache_store.prune import prune
from tests.artifacts import small

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    for key, created in (("old", "2026-01-01T00:00:00Z"), ("new", "2026-02-27T00:00:00Z")):
        ref, manifest, blobs = small(tmp_path, text=key, created=created, key=key)
        store.commit(ref, manifest.encode(), blobs)
    return store


def test_only_what_is_old_is_removed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    pruned = prune(store, now=NOW, older_than=timedelta(days=30))
    assert len(pruned.refs) == 1
    assert pruned.freed > 0
    assert len(list(store.refs())) == len(store.blobs) == 1


def test_everything_is_removed_when_no_age_is_too_young(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert len(prune(store, now=NOW, older_than=timedelta.min).refs) == 2
    assert not store.blobs
    assert not store.manifests


def test_what_cannot_be_read_is_removed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    digest = next(iter(store.manifests))
    store.manifests[digest] = b"garbage"
    assert len(prune(store, now=NOW, older_than=timedelta(days=9999)).refs) == 1
