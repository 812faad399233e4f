"""The local store's directory tree, and the checks that make its contents worth trusting."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cache_store.errors import RootRefused, named

DIRECTORIES = ("blobs", "manifests", "refs", "tmp", "locks", "quarantine")


def default_root(environ: Mapping[str, str]) -> Path:
    """`AOT_HOME`, else `aot` below the user's cache directory (the XDG one, else `~/.cache`)."""
    if home := environ.get("AOT_HOME"):
        return Path(home).expanduser().absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "aot"


def open_root(root: Path) -> Path:
    """Make or check `root`, and return its versioned tree `root/v1`.

    Loading an artifact runs its code, so nobody else may be able to put files there. Raises RootRefused when the
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
        status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RootRefused(
            f"store root {directory} is not a directory (a link is not followed).",
            remedy="set AOT_HOME to a real directory of your own.",
        )
    if status.st_uid != os.geteuid():
        raise RootRefused(
            f"store root {directory} belongs to user {status.st_uid}, you are {os.geteuid()}; whoever owns it decides what code is loaded.",
            remedy="set AOT_HOME to a directory of your own.",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RootRefused(
            f"store root {directory} may be written by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            remedy=f"chmod 700 {directory}",
        )
