"""Elf: what a library asks of the process that maps it, read from its bytes: the symbols that it leaves to others."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from aot.cache_store.errors import Malformed

_MAGIC, _CLASS64, _LITTLE = b"\x7fELF", 2, 1
_MACHINES = {62: "x86_64", 183: "aarch64"}
_DYNSYM, _WEAK = 11, 2
_HEADER, _PROGRAM, _SECTION, _SYMBOL = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IIQQQQIIQQ"), 24


@dataclass(frozen=True, slots=True)
class Elf:
    """A shared library. `needs`: the symbols that it does not define and cannot do without; `exports` those that it does."""

    machine: str
    needs: frozenset[str]
    exports: frozenset[str]

    @classmethod
    def of(cls, library: bytes) -> Self:
        """Raises Malformed for what is no library of 64 bits, or is cut short."""
        try:
            return cls._of(library)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise Malformed(f"its library is damaged: {error}.") from error

    @classmethod
    def _of(cls, library: bytes) -> Self:
        ident, _, machine, _, _, programs, sections, _, _, _, n_programs, _, n_sections, _ = _HEADER.unpack_from(library)
        if not ident.startswith(_MAGIC) or ident[4] != _CLASS64 or ident[5] != _LITTLE:
            raise Malformed("its library is no ELF file of 64 bits.")
        headers = [_PROGRAM.unpack_from(library, programs + place * _PROGRAM.size) for place in range(n_programs)]
        if any(offset + size > len(library) for _, _, offset, _, _, size, _, _ in headers):
            raise Malformed("its library is cut short.")
        tables = [_SECTION.unpack_from(library, sections + place * _SECTION.size) for place in range(n_sections)]
        needs, exports = set[str](), set[str]()
        for _, kind, _, _, offset, size, link, _, _, _ in tables:
            if kind != _DYNSYM:
                continue
            names = library[tables[link][4] : tables[link][4] + tables[link][5]]
            for place in range(offset, offset + size, _SYMBOL):
                start, info, _, section = struct.unpack_from("<IBBH", library, place)
                name = names[start : names.index(b"\0", start)].decode() if start < len(names) else ""
                if section:
                    exports.add(name)
                elif name and info >> 4 != _WEAK:
                    needs.add(name)
        return cls(_MACHINES.get(machine, str(machine)), frozenset(needs), frozenset(exports))
