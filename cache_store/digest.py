"""Digest: the name of bytes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

from aot.cache_store.errors import Malformed

CHUNK = 1 << 20  # bytes read at a time: large enough that hashing dominates, small enough to bound memory
_HEX = "0123456789abcdef"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256. Text form `sha256:<64 hex digits>`; `Digest.parse(str(d)) == d`."""

    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != 64 or self.hex.strip(_HEX):
            raise Malformed(f"digest {self.hex!r} is not 64 lower-case hexadecimal digits.")

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """Twelve digits, for people."""
        return self.hex[:12]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Malformed unless `text` is `sha256:` and 64 digits."""
        scheme, _, digits = text.partition(":")
        if scheme != "sha256":
            raise Malformed(f"digest {text!r} does not begin with `sha256:`.")
        return cls(digits)

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def of_stream(cls, stream: BinaryIO) -> Self:
        """Reads `stream` to its end, a chunk at a time."""
        state = hashlib.sha256()
        for chunk in chunks(stream):
            state.update(chunk)
        return cls(state.hexdigest())


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of `stream`, at most CHUNK bytes at a time."""
    while chunk := stream.read(CHUNK):
        yield chunk
