"""The local store's directory tree, and the checks that make its contents worth trusting."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from aot.cache_store.errors import RootRefused, named

DIRECTORIES = ("blobs", "manifests", "signatures", "origins", "refs", "remotes", "parts", "tmp", "locks", "quarantine")


def default_root(environ: Mapping[str, str]) -> Path:
    """`AOT_HOME`, else `aot` below the user's cache directory (the XDG one, else `~/.cache`)."""
    if home := environ.get("AOT_HOME"):
        return Path(home).expanduser().absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "aot"


def open_root(root: Path) -> Path:
    """Make or check `root`, and return its versioned tree `root/v1`.

    Loading an artifact runs its code, so nobody else but root may be able to put files there. Raises RootRefused when the
    directory is a link, belongs to another user, or others may write to it; Unreachable when it cannot be made.
    """
    with named(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(root)
    tree = root / "v1"
    for directory in [tree, *(tree / name for name in DIRECTORIES)]:
        with named(directory):
            directory.mkdir(mode=0o700, exist_ok=True)
        _check(directory)
    return tree


def _check(directory: Path) -> None:
    with named(directory):
        check_owned(directory, what="store root", directory=True)


def check_owned(path: Path, *, what: str, directory: bool = False, secret: bool = False) -> None:
    """Raises RootRefused unless `path` is a plain file (or directory) that only the current user may write, and if `secret` read.

    It may be root's too: root decides everything anyway, and what is in an image is often root's.
    """
    status = path.lstat()
    remedy = "set AOT_HOME to a directory of your own." if directory else f"make {path} a file of your own."
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(status.st_mode):
        kind = "directory" if directory else "regular file"
        raise RootRefused(f"{what} {path} is not a {kind} (a link is not followed).", remedy=remedy)
    if status.st_uid not in (os.geteuid(), 0):
        raise RootRefused(
            f"{what} {path} belongs to user {status.st_uid}, you are {os.geteuid()}; whoever owns it decides what code is loaded.",
            remedy=remedy,
        )
    others = (stat.S_IRWXG | stat.S_IRWXO) if secret else (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_mode & others:
        raise RootRefused(
            f"{what} {path} may be {'read' if secret else 'written'} by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            remedy=f"chmod {'700' if directory else '600'} {path}",
        )
