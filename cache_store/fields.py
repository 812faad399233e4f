"""Fields: reading a JSON object strictly, so that what is not understood is refused, not skipped."""

from typing import Any, TypeVar

from aot.cache_store.errors import Malformed

T = TypeVar("T")


class Fields:
    """Takes the fields of one JSON object, each exactly once, each of its type."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where} is not an object.")
        self._rest, self._where = dict(value), where

    def take(self, name: str, kind: type[T]) -> T:
        value = self._rest.pop(name, None)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Malformed(f"{self._where} field {name!r} is not of type {kind.__name__}.")
        return value

    def size(self, name: str, limit: int) -> int:
        value = self.take(name, int)
        if not 0 <= value <= limit:
            raise Malformed(f"{self._where} field {name!r} is {value}; allowed are 0 to {limit}.")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self.take(name, dict)
        if not all(isinstance(text, str) for text in value.values()):
            raise Malformed(f"{self._where} field {name!r} holds something that is not text.")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        value = self.take(name, list)
        if not all(isinstance(text, str) for text in value):
            raise Malformed(f"{self._where} field {name!r} holds something that is not text.")
        return tuple(value)

    def finish(self) -> None:
        if self._rest:
            raise Malformed(f"{self._where} has unknown fields {sorted(self._rest)}.")
