"""Saved: a Record as a file. It names classes, holds configs, fingerprints and calls; and no weight, prompt, picture or code.

Opening one makes models of diffusers and transformers from their configs, without weights, and believes none of it: the fingerprint
of each must be the recorded one, line by line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.cache_store.canonical import decode_loosely, encode
from aot.cache_store.errors import CodedError, Malformed
from aot.errors import BadInput, Unsupported
from aot.request.described import FORM, described, essence, parts, proved
from aot.request.named import Named, artifact_name

if TYPE_CHECKING:
    from aot.model.recorder import RecordedCall
    from aot.request.record import Record

_LARGEST = 64 << 20  # bytes of a file: a hundred times the largest of ours


@dataclass(frozen=True, slots=True)
class Saved(Named):
    """The file at `path`. Classes are those of diffusers and transformers, and of the modules named by `also`, which are imported."""

    path: str
    also: tuple[str, ...] = ()
    name: str = ""  # of the artifact; by default the recorded one

    @property
    def own_name(self) -> str:
        """The artifact's, where none is given: the file's, as such names are written."""
        return artifact_name(Path(self.path).stem)

    def check(self) -> None:
        """Raises BadInput where there is no file."""
        if not Path(self.path).is_file():
            raise BadInput(f"there is no file {self.path}.", remedy="`aot record`, or Record.save in Python, writes one.")

    def record(self) -> Record:
        """The Record, with modules made again. Raises BadInput for a file that is none, Unsupported for what cannot be made here."""
        value = read(Path(self.path))
        try:
            return _record(value, self.name, self.also)
        except CodedError:
            raise
        except Exception as error:  # whatever a class raises about a config that is not one of its own
            raise BadInput(
                f"{self.path} is no Record that can be read: {type(error).__name__}: {error}",
                remedy="record it again, with this version of aot.",
            ) from error


def save(record: Record, path: str | Path) -> None:
    """Write a Record to a file that any machine can build from, and anybody may read. Raises Unsupported as `proved` does."""
    write(proved(described(record), also={type(module).__module__ for module in record.roots.values()}), path)


def write(value: Mapping[str, Any], path: str | Path) -> None:
    """At once or not at all."""
    raw, part = encode(value), Path(path).with_name(f".{Path(path).name}.part")
    part.write_bytes(raw)
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, as it is: nothing is made of it. Raises BadInput."""
    with path.open("rb") as file:
        raw = file.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise BadInput(f"{path} is larger than any Record.", remedy="name a file that `aot record` wrote.")
    try:
        value = decode_loosely(raw, what="Record")
    except Malformed as error:
        raise BadInput(f"{path} is no Record: {error.message}", remedy="record it again.") from error
    if not isinstance(value, dict) or value.get("form") != FORM:
        raise BadInput(f"{path} is no Record of form {FORM}.", remedy="record it again, with this version of aot.")
    return value


def _record(value: dict[str, Any], name: str, also: Collection[str]) -> Record:
    from aot.model.attention import NATIVE
    from aot.model.fingerprint import Fingerprint
    from aot.model.recorder import RecordedCall
    from aot.request.record import Record

    made = parts(value["roots"], value["components"], also=also)
    for place, lines in value["components"].items():
        if differs := Fingerprint.from_json(lines).differs(essence(made[place])):
            versions = ", ".join(f"{library} {number}" for library, number in value["versions"].items())
            raise Unsupported(
                f"{place} comes out otherwise here than where it was recorded ({versions}): {differs}",
                remedy="install the versions that it was recorded with, or record it again.",
            )
    calls: list[RecordedCall] = [RecordedCall.from_json(call) for call in value["calls"]]
    if unknown := {call.component for call in calls} - set(made):
        raise ValueError(f"calls of {min(unknown)}, which is no component")
    attention = tuple(map(str, value.get("attention", (NATIVE,))))
    return Record(name or str(value["name"]), modules=made, calls=calls, left=dict(value["left"]), attention=attention)
