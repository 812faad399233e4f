"""The stores and the policy that the verbs share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from aot.guard import Guard
    from cache_store.local import LocalStore

Location: TypeAlias = Annotated[
    str, typer.Argument(help="Store: hf://ORG/REPO[@REVISION], s3://…, any fsspec URL, or a path.", metavar="STORE")
]


def local_store() -> LocalStore:
    """That of this user: AOT_HOME, else `aot` in the cache directory."""
    from cache_store.local import LocalStore
    from cache_store.root import default_root

    return LocalStore(default_root(os.environ))


def open_guard(store: LocalStore) -> Guard:
    """The policy of that store's root, with the pins of the lock file."""
    from aot.guard import Guard
    from cache_store.lock import lock_file
    from cache_store.trust import Policy

    return Guard(Policy.read(store.root, lock_file(os.environ)), store.root)
