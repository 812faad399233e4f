"""Lock: artifacts pinned by digest, and where each was found. The file belongs in version control, beside the code that serves them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from aot.cache_store.canonical import decode_loosely, encode_for_people
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed, named
from aot.cache_store.fields import Fields
from aot.cache_store.root import check_owned
from aot.cache_store.store import Ref
from aot.cache_store.written import write_whole

SCHEMA = 1
FILE = "aot.lock"


@dataclass(frozen=True, slots=True)
class Pin:
    """One artifact: exactly these bytes, whoever signed them."""

    store: str  # location, at a commit where the store has commits
    ref: Ref
    digest: Digest
    about: dict[str, str] = field(default_factory=dict)  # target and mode, for people


@dataclass(frozen=True, slots=True)
class Lock:
    """Pins, one a ref and store."""

    pins: tuple[Pin, ...] = ()

    def pin(self, pins: Iterable[Pin]) -> Self:
        """With these added; one of the same ref in the same place is replaced."""
        found = {(pin.store.partition("@")[0], pin.ref): pin for pin in (*self.pins, *pins)}
        return type(self)(tuple(sorted(found.values(), key=lambda pin: (pin.store, pin.ref))))

    def encode(self) -> bytes:
        return encode_for_people({"schema": SCHEMA, "artifacts": [_plain(pin) for pin in self.pins]})

    @classmethod
    def parse(cls, raw: bytes, *, what: str = FILE) -> Self:
        """Raises Malformed with the field that is wrong."""
        fields = Fields(decode_loosely(raw, what=what), what)
        if (schema := fields.take("schema", int)) != SCHEMA:
            raise Malformed(f"{what}: schema {schema} is unknown; this version reads {SCHEMA}.")
        pins = tuple(map(_pin, fields.take("artifacts", list)))
        fields.finish()
        return cls(pins)

    @classmethod
    def read(cls, path: Path) -> Self:
        """An empty one where there is no file. Raises Malformed, RootRefused when others may write it, Unreachable."""
        with named(path):
            if not path.exists():
                return cls()
            check_owned(path, what="lock file")
            return cls.parse(path.read_bytes(), what=str(path))

    def write(self, path: Path) -> None:
        write_whole(path, self.encode(), mode=0o644)


def lock_file(environ: Mapping[str, str]) -> Path:
    """`AOT_LOCK`, else `aot.lock` in the current directory."""
    return Path(environ.get("AOT_LOCK") or FILE).expanduser().absolute()


def _plain(pin: Pin) -> dict[str, Any]:
    return {**asdict(pin), "ref": str(pin.ref), "digest": str(pin.digest)}


def _pin(value: Any) -> Pin:
    fields = Fields(value, "pin")
    pin = Pin(
        store=fields.take("store", str),
        ref=Ref.parse(fields.take("ref", str)),
        digest=Digest.parse(fields.take("digest", str)),
        about=fields.texts("about"),
    )
    fields.finish()
    return pin
