"""Layers: packing files into one compressed blob, and unpacking them only after every byte was verified."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from aot.cache_store.digest import Digest, chunks
from aot.cache_store.errors import Corrupt, named
from aot.cache_store.manifest import FileEntry, Layer

LEVEL = 19  # built once, downloaded and kept many times; decompression speed does not depend on it
_MOST_THREADS = 4  # decompressing and hashing leave the interpreter to others; a disk is full of work with four
_WORTH_THREADS = 4 << 20  # bytes that are unpacked in a millisecond or two
_PIECE = 1 << 18  # bytes: what is unpacked, hashed and written stays in a core's own cache
_BLOCK = 1 << 17  # bytes: the largest block there is
_FRAME = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(17 - 10) << 3])  # magic; no size, no checksum; a window of 2^17
MAX_WINDOW = 1 << 27  # bytes; the largest window that level 19 uses is 8 MiB, the standard's limit for decoders 128


def pack(id: str, *, kind: str, root: Path, paths: Iterable[str], target: BinaryIO) -> tuple[Layer, list[FileEntry]]:
    """Write the files `root/path` to `target`, one zstd frame each, sorted by path.

    The same files give the same bytes: nothing of time, owner, mode or directory order enters.
    """
    return _pack(id, kind, ((path, (root / path).read_bytes()) for path in sorted(paths)), _compressed, target)


def pack_stored(id: str, *, kind: str, files: Mapping[str, bytes], target: BinaryIO) -> tuple[Layer, list[FileEntry]]:
    """As `pack`, of files in memory and without compressing: the bytes are the same whichever release of zstd there is."""
    return _pack(id, kind, sorted(files.items()), _stored, target)


def _pack(
    id: str, kind: str, files: Iterable[tuple[str, bytes]], framed: Callable[[bytes], bytes], target: BinaryIO
) -> tuple[Layer, list[FileEntry]]:
    layer_hash, entries, offset = hashlib.sha256(), [], 0
    for path, data in files:
        frame = framed(data)
        entries.append(FileEntry(path=path, size=len(data), digest=Digest.of(data), layer=id, offset=offset, length=len(frame)))
        layer_hash.update(frame)
        target.write(frame)
        offset += len(frame)
    return Layer(id=id, kind=kind, size=offset, digest=Digest(layer_hash.hexdigest())), entries


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(data)


def _stored(data: bytes) -> bytes:
    """A zstd frame of raw blocks (RFC 8878, 3.1.1): without checksum or size, its window that of one block."""
    pieces = [data[place : place + _BLOCK] for place in range(0, len(data), _BLOCK)] or [b""]
    heads = [(len(piece) << 3 | (place == len(pieces) - 1)).to_bytes(3, "little") for place, piece in enumerate(pieces)]
    return _FRAME + b"".join(part for pair in zip(heads, pieces, strict=True) for part in pair)


def verify(layer: Layer, blob: BinaryIO) -> None:
    """Hash the whole of `blob`. Raises Corrupt unless size and digest are as `layer` promises."""
    state, size = hashlib.sha256(), 0
    for chunk in chunks(blob):
        size += len(chunk)
        if size > layer.size:
            break
        state.update(chunk)
    if size != layer.size or state.hexdigest() != layer.digest.hex:
        raise _corrupt(layer, f"layer {layer.id}: sha256 mismatch ({size} bytes read, {layer.size} promised)")


@contextmanager
def verifying(layer: Layer, blob: BinaryIO) -> Iterator[Callable[[], None]]:
    """`verify` beside what is done within, of a large file on this machine; of anything else before it.

    Yields what waits for the verdict. Until then files may be unpacked, each being compared with the manifest's own digest
    of it, and none may be mapped. Raises Corrupt at the latest when left.
    """
    if _threads(layer.size, blob) == 1:
        verify(layer, blob)
        yield lambda: None
        return
    with ThreadPoolExecutor(1, thread_name_prefix="aot-verify") as pool:
        verdict = pool.submit(verify, layer, cast(BinaryIO, _Slice(blob, 0, layer.size + 1)))
        try:
            yield verdict.result
        except Corrupt:
            verdict.result()  # of the layer rather than of one of its files, whichever was found first
            raise
        verdict.result()


def materialise(layer: Layer, *, files: list[FileEntry], blob: BinaryIO, into: Path) -> list[Path]:
    """Decompress `files` of a `blob` that `verify` has taken, or is looking at, below the directory `into`.

    Each file is hashed while it is written, so the bytes that were verified are the bytes that are used, whatever
    happens to `blob` after `verify`. Raises Corrupt at the first file that is not as promised.
    """
    workers = min(len(files), _threads(sum(entry.size for entry in files), blob))
    if workers <= 1:
        return [_extract(entry, layer=layer, blob=blob, into=into) for entry in files]
    with ThreadPoolExecutor(workers, thread_name_prefix="aot-unpack") as pool:
        running = [pool.submit(_extract, entry, layer=layer, blob=blob, into=into) for entry in files]
        try:
            return [one.result() for one in running]
        finally:  # after the first that is not as promised no more are begun
            pool.shutdown(wait=False, cancel_futures=True)


def _extract(entry: FileEntry, *, layer: Layer, blob: BinaryIO, into: Path) -> Path:
    path = into / entry.path
    # the directory may be one that other processes read (TORCHINDUCTOR_CACHE_DIR): a file appears whole or not at all
    # and files beside each other may be equal: the offset tells apart what is unpacked at once
    temporary = path.with_name(f".{os.getpid()}-{entry.digest.short}-{entry.offset}")
    with named(into):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with _fresh(temporary) as target:
                whole = _decompress(entry, _Slice(blob, entry.offset, entry.length), target)
            if whole:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    if not whole:
        raise _corrupt(layer, f"file {entry.path} of layer {layer.id}: not the bytes that the manifest promises")
    return path


def _decompress(entry: FileEntry, source: "_Slice", target: BinaryIO) -> bool:
    """Stream one frame into `target`; False unless size, digest and frame end are exactly as promised."""
    state, left, piece = hashlib.sha256(), entry.size, memoryview(bytearray(min(entry.size + 1, _PIECE)))
    # the whole-buffer call ignores its size limit when the frame declares one, so only the stream is safe
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(cast(BinaryIO, source), read_size=_PIECE, closefd=False)
    try:
        while count := reader.readinto(piece):
            left -= count
            if left < 0:
                return False
            state.update(piece[:count])
            target.write(piece[:count])
    except zstandard.ZstdError:
        return False
    return left == 0 and source.left == 0 and state.hexdigest() == entry.digest.hex


def _fresh(path: Path) -> BinaryIO:
    """A new file: what lay there before, a link included, is removed rather than written through."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def _corrupt(layer: Layer, what: str) -> Corrupt:
    return Corrupt(f"{what}.", culprit=str(layer.digest))


class _Slice(io.RawIOBase):
    """`left` bytes of a stream from `offset` on, as a stream. Of a file several may be read at once: none moves its position."""

    def __init__(self, stream: BinaryIO, offset: int, left: int) -> None:
        super().__init__()
        self._stream, self._is_file, self._offset, self.left = stream, _is_file(stream), offset, left

    def read(self, size: int = -1, /) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        if self._is_file:
            data = os.pread(self._stream.fileno(), size, self._offset)  # asked each time: it is there that a deadline is looked at
        else:
            self._stream.seek(self._offset)
            data = self._stream.read(size)
        self._offset += len(data)
        self.left -= len(data)
        return data


def _threads(size: int, blob: BinaryIO) -> int:
    """How many threads so many bytes are worth, on the processors that this process has: one for a stream that is no file."""
    return 1 if size < _WORTH_THREADS or not _is_file(blob) else min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def _is_file(stream: BinaryIO) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError):  # it is in memory
        return False
    return True
