"""From what a user writes to a store."""

import re
from pathlib import Path

from cache_store.errors import Malformed
from cache_store.local import LocalStore

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")


def open_store(location: str) -> LocalStore:
    """The store at a path or a `file://` URL. Raises Malformed for a scheme that this version cannot open."""
    scheme = _SCHEME.match(location)
    if scheme and scheme[1] != "file":
        raise Malformed(
            f"store location {location!r} has scheme {scheme[1]!r}; this version opens paths and file:// URLs.",
            remedy="copy the store's directory to this machine and give its path.",
        )
    return LocalStore(Path(location[scheme.end() :] if scheme else location).expanduser().absolute())
