"""Written: files that appear whole or not at all."""

import errno
import hashlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from aot.cache_store.digest import Digest, chunks
from aot.cache_store.errors import Corrupt, named
from aot.cache_store.plain import in_the_way

_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what fsync says of directories that know of none


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a small file by way of a temporary one beside it. Raises StoreFull, Unreachable; `path` is then as it was."""
    put(path, data, by=path.with_name(f".{path.name}.{secrets.token_hex(4)}"), mode=mode)


def write_hint(path: Path, data: bytes) -> None:
    """The same for a file of ours that can be thrown away: so can whatever is in its place."""
    if in_the_way(path):
        delete(path)
    write_whole(path, data)


def put(path: Path, content: bytes | BinaryIO, *, by: Path, digest: Digest | None = None, mode: int = 0o400) -> None:
    """Temporary file `by`, write and hash, fsync, rename, fsync the directory. Raises Corrupt unless it hashes to `digest`, if given."""
    state = hashlib.sha256()
    with named(path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with os.fdopen(os.open(by, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
                for chunk in [content] if isinstance(content, bytes) else chunks(content):
                    state.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest and state.hexdigest() != digest.hex:
                raise Corrupt(f"what was to be stored does not hash to {digest.short}.", culprit=str(digest))
            by.rename(path)
        finally:
            by.unlink(missing_ok=True)
        sync(path.parent)


def sync(directory: Path) -> None:
    """Make a rename in `directory` outlive a loss of power, where its disk can be asked for that: network and FUSE mounts may not."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)


def delete(path: Path) -> int:
    """Remove a file or a tree; return its size in bytes."""
    if path.is_dir() and not path.is_symlink():
        freed = sum(delete(child) for child in path.iterdir())
        path.rmdir()
        return freed
    size = path.lstat().st_size
    path.unlink()
    return size


def temporary(directory: Path) -> Path:
    """A name in `directory` that nobody else uses; it says which process made it."""
    return directory / f"{os.getpid()}-{secrets.token_hex(8)}"


def in_use(path: Path) -> bool:
    """Whether a file named by `temporary` may still be written: its process is there."""
    pid, dash, _ = path.name.partition("-")
    if not (dash and pid.isdigit()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, then, and alive
        return True
    return True
