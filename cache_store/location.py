"""From what a user writes to a store."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from aot.cache_store.cached import CachedStore
from aot.cache_store.errors import Malformed
from aot.cache_store.local import LocalStore
from aot.cache_store.store import PrunableStore

if TYPE_CHECKING:
    from aot.cache_store.hub import HubStore

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_HUB = re.compile(r"hf://(?:models/)?([^/@]+/[^/@]+?)/?(?:@(.+))?")


def open_store(location: str) -> PrunableStore:
    """The store at a path (a local store), at `hf://ORG/REPO[@REVISION]`, or at any URL that fsspec opens.

    A `file://` URL is a shared folder, whose artifacts are trusted no more than a server's; a path is a store of one's own.
    Raises Malformed for what is none of these.
    """
    scheme = _SCHEME.match(location)
    if not scheme:
        return LocalStore(Path(location).expanduser().absolute())
    if scheme[1] == "hf":
        return open_hub(location)
    from aot.cache_store.filesystem import FilesystemStore

    return FilesystemStore(location)


def open_cached(location: str, root: Path) -> LocalStore | CachedStore:
    """The store at a path; any other read through into the local store at `root`. Raises as `open_store` does."""
    store = open_store(location)
    return store if isinstance(store, LocalStore) else CachedStore(store, LocalStore(root))


def open_hub(location: str) -> "HubStore":
    """Raises Malformed unless it is `hf://ORG/REPO[@REVISION]`."""
    match = _HUB.fullmatch(location)
    if not match:
        raise Malformed(
            f"store location {location!r} is not of the form hf://ORG/REPO[@REVISION].", remedy="for example hf://acme/artifacts."
        )
    from aot.cache_store.hub import HubStore

    return HubStore(match[1], match[2])
