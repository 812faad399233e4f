"""`aot ls`."""

from __future__ import annotations

from aot.cli.request import Json
from aot.cli.text import age, now, print_json, print_table, size
from aot.verbs.stores import local_store


def ls(json: Json = False) -> None:
    """List the artifacts of the local store, newest first."""
    from aot.cache_store.store import read_manifest
    from aot.shipping.listing import described, listing

    store = local_store()
    rows = listing(store)
    if json:
        print_json([described(row, read_manifest(store, row.digest)) for row in rows])
        return
    print_table(
        ("recipe", "variant", "target", "mode", "shapes", "size", "age", "key", "digest"),
        [
            (
                row.ref.name,
                row.part("variant"),
                row.target,
                row.mode,
                row.shapes,
                size(row.entry.size),
                age(row.entry.created, now()),
                row.ref.key.short,
                row.digest.short,
            )
            for row in rows
        ],
    )
