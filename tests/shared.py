"""What the processes of one test session share: each thing is made once, by whichever needs it first; the others wait for it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from aot.building.build import Built, build
from aot.cache_store.digest import Digest
from aot.cache_store.local import LocalStore
from aot.cache_store.store import Ref, read_manifest
from aot.compiler.stage import Stage
from aot.request.request import Request

# the same in every session of this user, so that what is precompiled for it serves the next; a checkout's path may hold blanks
HERE = Path(tempfile.gettempdir()) / f"aot-tests-{os.getuid()}"


def quiet(_: Stage) -> None: ...


@dataclass(frozen=True, slots=True)
class Shared:
    """A folder that every process of the session sees."""

    folder: Path

    def once(self, name: str, make: Callable[[Path], str]) -> str:
        """What `make` returned of the folder `name`, here or in another process."""
        done, folder = self.folder / f"{name}.done", self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                done.write_text(make(folder))
        return done.read_text()

    def built(self, name: str, request: Request, home: Path | None = None) -> tuple[LocalStore, Built]:
        """The artifact of a request, in the store at `home`, else one of its own; no test may change it."""

        def make(folder: Path) -> str:
            made = build(request, LocalStore(home or folder / "home"), progress=quiet, environ=os.environ)
            return f"{made.ref} {made.digest} {made.log}"

        ref, digest, log = self.once(name, make).split(" ", maxsplit=2)
        store = LocalStore(home or self.folder / name / "home")
        manifest = read_manifest(store, Digest.parse(digest))
        return store, Built(Ref.parse(ref), Digest.parse(digest), manifest, fresh=True, log=Path(log))


def compile_quickly(environ: Any) -> None:
    """From now on nothing is optimised.

    What is asserted of compiled code is its numbers, never its speed, and optimising takes most of a build.
    """
    real = shutil.which(environ.get("CXX") or "g++")
    if real is None or Path(real).is_relative_to(HERE):
        return
    HERE.mkdir(mode=0o700, exist_ok=True)
    script, mine = HERE / Path(real).name, HERE / f"{os.getpid()}"
    mine.write_text(f'#!/bin/sh\nexec "{real}" "$@" -O0\n')
    mine.chmod(0o755)
    mine.replace(script)
    environ["CXX"] = str(script)
