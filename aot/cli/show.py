"""`aot show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aot.cli.request import Json
from aot.cli.text import age, found_cubins, now, print_json, size
from aot.verbs.stores import local_store

if TYPE_CHECKING:
    from aot.cache_store.manifest import Manifest
    from aot.shipping.listing import Row


def show(
    artifact: Annotated[str, typer.Argument(help="Recipe, recipe@key, or the beginning of a key or digest.")],
    json: Json = False,
) -> None:
    """Show an artifact: every key part, layers and sizes, what the build measured, the quality certificate.

    Where several match, the newest is shown, and how the others' keys differ from its.
    """
    from aot.artifact.key import Key
    from aot.cache_store.signing import claimed
    from aot.cache_store.store import read_manifest
    from aot.shipping.listing import described, listing, pick

    store = local_store()
    first, *others = pick(listing(store), artifact)
    manifest = read_manifest(store, first.digest)
    origins, signers = sorted(store.origins(first.digest)), claimed(store.envelope(first.digest))
    if json:
        signed = {"origins": origins, "signed_by": signers}
        print_json({**described(first, manifest), **signed, "others": [row.to_json() for row in others]})
        return
    _print(first, manifest)
    print("origin")
    for origin in origins:
        print(f"  {origin}")
    print("signed by keys (`aot verify` says whose)")
    for id in signers:
        print(f"  {id}")
    for row in others:
        print(f"\nalso {row.ref.name}@{row.ref.key.short} digest {row.digest.short}, which differs in")
        for name, mine, theirs in Key(first.entry.key).diff(Key(row.entry.key)):
            print(f"  {name}: {theirs} (above: {mine})")


def _print(row: Row, manifest: Manifest) -> None:
    print(manifest.name)
    print(f"  key     {row.ref.key}")
    print(f"  digest  {row.digest}")
    print(f"  created {manifest.created} ({age(manifest.created, now())} ago)")
    print("key parts")
    for name, value in sorted((name, value) for name, value in manifest.key.items() if value):  # an image has no frames
        print(f"  {name}: {value}")
    print("layers")
    for layer in manifest.layers:
        files = manifest.files_of(layer)
        print(
            f"  {layer.kind}: {size(layer.size)} ({len(files)} files, {size(sum(entry.size for entry in files))} unpacked) {layer.digest}"
        )
    print("producer")
    for name, value in sorted(manifest.producer.items()):
        print(f"  {name}: {value}")
    print("measured at build, seconds")
    for what, values in sorted(manifest.measured.items()):
        if what in ("cubins", "memory", "packages") or not isinstance(values, dict):  # a later version may have others
            continue
        for name, seconds in values.items():
            print(f"  {what} {name}: {seconds}")
    if memory := manifest.measured.get("memory"):
        print(f"memory of the build, at most: {size(memory['peak_bytes'])}")
    if cubins := found_cubins(manifest):
        print("machine code: " + ", ".join(f"{count} cubins of {arch}" for arch, count in cubins.items()))
    _print_certificate(manifest.certificate)


def _print_certificate(certificate: Mapping[str, Any]) -> None:
    if why := certificate.get("unchecked"):
        print(f"no quality certificate: {why}")
        print(f"golden outputs: {certificate.get('golden', 'none')}")
        return
    print(f"quality certificate, against eager (allowed relative L2: {certificate.get('tolerance_relative_l2')})")
    for entry in certificate.get("calls", []):
        psnr = "equal" if entry["psnr"] is None else f"{entry['psnr']:.1f} dB"
        print(f"  {entry['call']}: max abs {entry['max_abs']:.2e}, relative L2 {entry['relative_l2']:.2e}, PSNR {psnr}")
