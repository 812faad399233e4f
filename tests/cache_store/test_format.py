"""FORMAT.md is the specification: this reader was written from it alone. It imports nothing of ours.

It needs Python, a zstd decoder and an ed25519 verifier, and reads an artifact out of a store's folder.
"""

import base64
import hashlib
import json
from pathlib import Path

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def signed(root: Path, digest: str, manifest: bytes, key_line: str) -> bool:
    scheme, _, encoded = key_line.split(":")
    assert scheme == "aot-ed25519"
    raw = base64.b64decode(encoded)
    envelope = json.loads((root / "v1" / "signatures" / digest).read_bytes())
    kind = envelope["payloadType"].encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(manifest), manifest)
    signatures = {entry["keyid"]: base64.b64decode(entry["sig"]) for entry in envelope["signatures"]}
    if sha256(raw) not in signatures:
        return False
    Ed25519PublicKey.from_public_bytes(raw).verify(signatures[sha256(raw)], message)
    return True


def read(root: Path, name: str, key_line: str) -> dict[str, bytes]:
    """Every file of the one artifact of that name, by path."""
    (ref,) = (root / "v1" / "refs" / name).iterdir()
    scheme, _, digest = ref.read_text().strip().partition(":")
    assert scheme == "sha256"
    manifest = (root / "v1" / "manifests" / digest).read_bytes()
    assert len(manifest) <= 8 << 20
    assert sha256(manifest) == digest
    assert signed(root, digest, manifest, key_line)
    told = json.loads(manifest)
    assert canonical(told) == manifest
    assert told["schema"] == 1
    assert ref.name == sha256(canonical(told["key"]))
    found = {}
    for layer in told["layers"]:
        blob = (root / "v1" / "blobs" / layer["sha256"]).read_bytes()
        assert (len(blob), sha256(blob)) == (layer["size"], layer["sha256"])
        end = 0
        for entry in (entry for entry in told["files"] if entry["layer"] == layer["id"]):
            assert entry["offset"] == end
            end += entry["length"]
            data = zstandard.ZstdDecompressor().decompressobj().decompress(blob[entry["offset"] : end])
            assert (len(data), sha256(data)) == (entry["size"], entry["sha256"])
            found[entry["path"]] = data
        assert end == layer["size"]
    return found


def test_an_artifact_is_read_by_the_document_alone(tmp_path: Path) -> None:
    from aot.cache_store.local import LocalStore
    from aot.cache_store.signing import SigningKey
    from tests.artifacts import small

    store = LocalStore(tmp_path / "home")
    ref, manifest, blobs = small(tmp_path)
    key, raw = SigningKey.of_machine(store.root), manifest.encode()
    store.commit(ref, raw, blobs, envelope=key.sign(raw))
    assert read(store.root, "small", str(key.public)) == {"a/b.bin": b"hello", "c.txt": bytes(50)}


def test_a_real_artifact_is_read_by_the_document_alone(store: object) -> None:
    from aot.cache_store.local import LocalStore
    from aot.cache_store.signing import SigningKey

    assert isinstance(store, LocalStore)
    files = read(store.root, "pixart-alpha", str(SigningKey.of_machine(store.root).public))
    assert json.loads(files["book.json"])["graphs"]
    assert any(data.startswith(b"\x7fELF") for data in files.values())
