"""Cubin: the GPU machine code in a library, and the architectures it is for, read from its own headers."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

_ELF, _CUDA = b"\x7fELF", 190  # e_machine EM_CUDA
_FATBIN, _ENTRY_ELF = 0xBA55ED50, 2


def architectures(library: bytes) -> dict[str, int]:
    """How many pieces of machine code for each architecture (`sm_90`) are in `library`: cubins, alone or in a fatbin.

    A cubin is an ELF file of NVIDIA's machine type; its flags hold the architecture, in the second byte since version 8 of
    its ABI (CUDA 12.8), in the first before. A fatbin's entries, whose code may be compressed, say theirs in their headers.
    """
    found = Counter(_cubins(library))
    found.update(_fatbin_entries(library))
    return dict(sorted(found.items()))


def _cubins(library: bytes) -> Iterator[str]:
    """Of plain cubins. One inside a fatbin is passed over: its container is asked."""
    inside = [range(start, end) for start, end, _ in _fatbins(library)]
    place = library.find(_ELF)
    while place >= 0:
        if len(library) >= place + 64 and struct.unpack_from("<H", library, place + 18)[0] == _CUDA:
            abi, (flags,) = library[place + 8], struct.unpack_from("<I", library, place + 48)
            if not any(place in span for span in inside):
                yield f"sm_{flags >> 8 & 0xFF if abi >= 8 else flags & 0xFF}"
        place = library.find(_ELF, place + 1)


def _fatbins(library: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end and header size of each fatbin: magic, version, header size (16 bits each), size of what follows (64 bits)."""
    magic = struct.pack("<I", _FATBIN)
    place = library.find(magic)
    while place >= 0 and len(library) >= place + 16:
        header, size = struct.unpack_from("<H", library, place + 6)[0], struct.unpack_from("<Q", library, place + 8)[0]
        if header >= 16 and place + header + size <= len(library):
            yield place, place + header + size, header
        place = library.find(magic, place + 4)


def _fatbin_entries(library: bytes) -> Iterator[str]:
    """Of machine code in fatbins: kind (16 bits) at 0, header size (32 bits) at 4, size (64 bits) at 8, architecture (32 bits) at 28."""
    for start, end, header in _fatbins(library):
        place = start + header
        while place + 32 <= end:
            kind, size_of_header = struct.unpack_from("<H", library, place)[0], struct.unpack_from("<I", library, place + 4)[0]
            size, arch = struct.unpack_from("<Q", library, place + 8)[0], struct.unpack_from("<I", library, place + 28)[0]
            if size_of_header < 32:
                break
            if kind == _ENTRY_ELF:
                yield f"sm_{arch}"
            place += size_of_header + size
