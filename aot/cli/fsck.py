"""`aot fsck`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size
from aot.verbs.stores import local_store, open_remote, open_source


def fsck(
    store: Annotated[str, typer.Argument(help=f"{stores.LOCATION} Default: the local store.", metavar="[STORE]")] = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Take what is damaged out of use, and fetch it again from where it was pulled.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every byte of a store, and tell what is not as promised. Exits with 7 when something is and was not repaired."""
    from aot.cache_store.errors import CodedError, Corrupt
    from aot.cache_store.fsck import examine, restore
    from aot.cache_store.hub import HubStore
    from aot.cache_store.local import LocalStore

    examined = open_remote(store) if store else local_store()
    if repair and isinstance(examined, HubStore):
        examined.list_anew()
    findings = list(examine(examined))
    for finding in findings if repair else []:
        examined.quarantine(finding.culprit)
    restored: list[str] = []
    if repair and isinstance(examined, LocalStore):
        for ref, digest, origin in [(ref, digest, origin) for finding in findings for ref, digest, origin in finding.pulled]:
            try:
                restore(examined, digest, open_source(origin))
                restored.append(str(ref))
            except CodedError as error:
                print(f"{ref.name} is not back: {error}", file=sys.stderr)
    freed = examined.collect() if repair else 0
    if json:
        print_json({"findings": list(map(str, findings)), "repaired": repair, "restored": restored, "freed": freed})
    else:
        for finding in findings:
            print(finding)
        said = f"; taken out of use, {len(restored)} fetched again, {size(freed)} freed" if repair else ""
        print(f"{len(findings)} findings{said}", file=sys.stderr)
    if findings and not repair:
        raise Corrupt(f"{examined.location}: {len(findings)} findings.", remedy="`aot fsck --repair` takes them out of use.")
