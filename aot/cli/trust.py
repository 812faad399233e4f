"""`aot trust add|ls|revoke`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.text import print_json, print_table
from aot.verbs.stores import local_store

trust = typer.Typer(help="Whose artifacts may run here: list keys, add them, revoke them.", no_args_is_help=True, rich_markup_mode=None)


@trust.command()
def add(
    keys: Annotated[list[str], typer.Argument(help="Key lines, aot-ed25519:NAME:BASE64.", metavar="KEYLINE...")],
    store: Annotated[list[str], typer.Option("--store", help="Only for these stores; shell patterns.", metavar="PATTERN")] = ["*"],
    name: Annotated[list[str], typer.Option("--name", help="Only for these recipes; shell patterns.", metavar="PATTERN")] = ["*"],
    threshold: Annotated[int, typer.Option(help="How many of these keys must have signed.", min=1)] = 1,
) -> None:
    """Trust keys: what enough of them signed is loaded. Get a key line from its owner, not from where the artifacts are."""
    from aot.cache_store.trust import trust_keys

    rule = trust_keys(local_store().root, keys, stores=store, names=name, threshold=threshold)
    print(f"trusted: {threshold} of {len(rule.keys)} keys, for stores {' '.join(store)}, recipes {' '.join(name)}", file=sys.stderr)


@trust.command()
def ls(json: Json = False) -> None:
    """List the rules, what is revoked, and this machine's own key line."""
    from aot.cache_store.signing import SigningKey
    from aot.cache_store.trust import Trust

    root = local_store().root
    listed, own = Trust.read(root), SigningKey.of_machine(root).public
    if json:
        rules = [
            {"keys": list(map(str, rule.keys)), "threshold": rule.threshold, "stores": list(rule.stores), "names": list(rule.names)}
            for rule in listed.rules
        ]
        revoked = {"keys": sorted(listed.revoked_keys), "artifacts": sorted(map(str, listed.revoked))}
        print_json({"own": str(own), "rules": rules, "revoked": revoked})
        return
    print_table(
        ("keys", "needed", "stores", "recipes"),
        [(" ".join(map(str, rule.keys)), str(rule.threshold), " ".join(rule.stores), " ".join(rule.names)) for rule in listed.rules],
    )
    for what in (*sorted(listed.revoked_keys), *sorted(map(str, listed.revoked))):
        print(f"revoked\t{what}")
    print(f"this machine's own key, for others to trust: {own}", file=sys.stderr)


@trust.command()
def revoke(what: Annotated[str, typer.Argument(help="A key line, the name or id of a listed key, or an artifact's sha256:…")]) -> None:
    """Never load again what only this key signed, or this artifact. There is no way back."""
    from aot.cache_store.trust import Trust

    root = local_store().root
    Trust.read(root).revoke(what).write(root)
    print(f"revoked: {what}", file=sys.stderr)
