"""Prune: forget old artifacts and free their bytes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from aot.cache_store.errors import Corrupt, Missing
from aot.cache_store.store import PrunableStore, Ref, read_manifest


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed."""

    refs: list[Ref]
    freed: int  # bytes


def prune(store: PrunableStore, *, now: datetime, older_than: timedelta) -> Pruned:
    """Forget every artifact created more than `older_than` before `now`, and every one that cannot be read; then collect."""
    gone = []
    for ref, digest in list(store.refs()):
        try:
            created = datetime.fromisoformat(read_manifest(store, digest).created)
        except (Corrupt, Missing):
            created = None
        if created is None or now - created >= older_than:
            store.remove(ref)
            gone.append(ref)
    return Pruned(refs=gone, freed=store.collect())
