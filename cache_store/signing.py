"""Signing: who vouches for a manifest. DSSE envelopes over ed25519 keys.

The envelope is detached: it leaves out the payload, which is the manifest that lies beside it. With that put back it is the
standard's JSON form, and any DSSE implementation verifies it; the tests do so with securesystemslib. Not used here to verify:
beside boto3 its import takes 0.4 s of a start-up that is to take 0.1 (torch-free interpreter, two Xeon cores).
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed, named
from aot.cache_store.fields import Fields
from aot.cache_store.root import check_owned

PAYLOAD_TYPE = "application/vnd.aot.manifest+json"
MAX_ENVELOPE = 64 << 10  # bytes; 64 signatures take 13 KiB
MAX_SIGNATURES = 64
_SCHEME = "aot-ed25519"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublicKey:
    """Text form `aot-ed25519:<name>:<base64 of the 32 bytes>`; `parse(str(k)) == k`. The name is for people: it decides nothing."""

    name: str
    raw: bytes

    def __str__(self) -> str:
        return f"{_SCHEME}:{self.name}:{base64.b64encode(self.raw).decode()}"

    @cached_property
    def id(self) -> str:
        """The sha256 of the key itself, in hex: one key under two names is one key."""
        return Digest.of(self.raw).hex

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Malformed with the part that is wrong."""
        scheme, _, rest = text.strip().partition(":")
        name, _, encoded = rest.partition(":")
        if scheme != _SCHEME or not _NAME.fullmatch(name):
            raise Malformed(f"key {text[:80]!r} is not of the form {_SCHEME}:NAME:BASE64.", remedy="`aot trust ls` prints a machine's own.")
        raw = _unbase64(encoded)
        if raw is None or len(raw) != 32:
            raise Malformed(f"key {name!r}: its last part is not the base64 of 32 bytes.", remedy="copy the whole line.")
        return cls(name, raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, UnsupportedAlgorithm, InternalError, ValueError):
            return False
        return True


class SigningKey:
    """An ed25519 private key in a file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        """Raises RootRefused when others could read or replace the file, Malformed when it holds no ed25519 key, Unreachable."""
        with named(path):
            check_owned(path, what="signing key", secret=True)
            data = path.read_bytes()
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
            raise Malformed(f"signing key {path} cannot be read: {error}.", remedy="it is a PEM file without a password.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Malformed(f"signing key {path} is not an ed25519 key.", remedy="openssl genpkey -algorithm ed25519")
        self._key = key
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = PublicKey(f"{path.stem}-{Digest.of(raw).short[:8]}", raw)

    @classmethod
    def of_machine(cls, root: Path) -> Self:
        """The key of this machine's store at `root`, made at its first use; of two processes that make it at once one wins."""
        path = machine_key(root)
        if not path.exists():
            with named(path):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _create(path)
        return cls(path)

    def sign(self, manifest: bytes) -> bytes:
        """The detached envelope of one signature."""
        return _encode({self.public.id: self._key.sign(authenticated(manifest))})


def machine_key(root: Path) -> Path:
    return root / "keys" / "machine.pem"


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # unlike a rename it does not replace a key that another process has just made
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def signers(manifest: bytes, envelope: bytes | None, keys: Iterable[PublicKey]) -> set[str]:
    """The ids of those of `keys` that signed exactly these bytes. Raises Malformed for an envelope that is not of its form."""
    if envelope is None:
        return set()
    signatures, message = _decode(envelope), authenticated(manifest)
    return {key.id for key in keys if key.id in signatures and key.verifies(signatures[key.id], message)}


def claimed(envelope: bytes | None) -> list[str]:
    """The ids that an envelope names, verified or not: to tell a user whose key is wanted."""
    return [] if envelope is None else sorted(_decode(envelope))


def merge(one: bytes | None, other: bytes | None) -> bytes | None:
    """Both envelopes' signatures of one manifest. Where both have one of a key, `other`'s stays."""
    if one is None or other is None:
        return one or other
    return _encode({**_decode(one), **_decode(other)})


def authenticated(manifest: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed is the type of the payload together with its bytes."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(manifest), manifest)


def _encode(signatures: dict[str, bytes]) -> bytes:
    entries = [{"keyid": id, "sig": base64.b64encode(signature).decode()} for id, signature in sorted(signatures.items())]
    return encode({"payloadType": PAYLOAD_TYPE, "signatures": entries})


def _decode(envelope: bytes) -> dict[str, bytes]:
    """Signatures by key id. Strict: canonical, known fields only, no id twice."""
    if len(envelope) > MAX_ENVELOPE:
        raise Malformed(f"signature envelope is {len(envelope)} bytes; the limit is {MAX_ENVELOPE}.")
    fields = Fields(decode(envelope, what="signature envelope"), "signature envelope")
    if (kind := fields.take("payloadType", str)) != PAYLOAD_TYPE:
        raise Malformed(f"signature envelope is of type {kind[:80]!r}, expected {PAYLOAD_TYPE!r}.")
    entries = fields.take("signatures", list)
    fields.finish()
    found = dict(map(_signature, entries))
    if len(found) != len(entries) or len(entries) > MAX_SIGNATURES:
        raise Malformed(f"signature envelope names a key twice, or more than {MAX_SIGNATURES}.")
    return found


def _signature(entry: object) -> tuple[str, bytes]:
    fields = Fields(entry, "signature")
    id, signature = fields.take("keyid", str), _unbase64(fields.take("sig", str))
    fields.finish()
    if not _ID.fullmatch(id) or signature is None or len(signature) != 64:
        raise Malformed("signature envelope holds something that is not a key id and an ed25519 signature.")
    return id, signature


def _unbase64(text: str) -> bytes | None:
    """Strict: another spelling of the same bytes is refused."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None
