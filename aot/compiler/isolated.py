"""Isolated: an environment of its own for builds with another torch than the one installed here, made with uv and kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from aot.cache_store.errors import StoreFull
from aot.cache_store.exclusive import exclusive
from aot.cache_store.root import open_root
from aot.compiler.stage import Progress, stage
from aot.errors import BadEnvironment, BadInput
from aot.machine.target import TORCH_BELOW, TORCH_MIN, constant

OURS = "aot"
_PINNED = ("diffusers", "transformers")  # as here: what is traced, and so the key, is then the same
_NEEDED = 8 * 2**30  # bytes: torch with its CUDA libraries takes 5 to 7 GB


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python to build with: its executable, where its packages are, and what its processes' environment has besides."""

    python: str = sys.executable
    path: tuple[str, ...] = tuple(sys.path)
    variables: tuple[tuple[str, str], ...] = ()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` for a process of this interpreter."""
        return {**environ, **dict(self.variables)}


def interpreter(torch: str, root: Path, *, progress: Progress, environ: Mapping[str, str]) -> Interpreter:
    """The interpreter of an environment with this version of torch below `root`, made if it is not there; else this process's own.

    Raises BadInput for a version that is not supported or that no index has, BadEnvironment without uv or when it fails,
    StoreFull when the disk has too little room. An environment that was not finished is made again.
    """
    torch = torch_version(torch)
    if torch == Version(version("torch")).public:
        return Interpreter()
    wanted = _requirements(torch)
    home = _home(torch, wanted, root)
    open_root(root)
    home.parent.mkdir(mode=0o700, exist_ok=True)
    with exclusive(home.parent / f"{home.name}.lock") as alone:
        if not (home / "complete").exists():
            if not alone:
                raise BadEnvironment(
                    f"an environment with torch {torch} is to be made in {root}, and its disk has no locks: two builds could spoil it.",
                    remedy="set AOT_HOME to a disk of this machine.",
                )
            with stage(progress, f"make an environment with torch {torch}, kept for further builds"):
                _make(home, wanted, torch=torch, uv=find_uv(environ, "--torch"), environ=environ)
        packages = str(next(home.glob("lib/python3*/site-packages")))
        own = _link(home / "own")
    return Interpreter(str(home / "bin" / "python"), (packages,), (("PYTHONPATH", str(own)), ("VIRTUAL_ENV", str(home))))


def is_ready(torch: str, root: Path) -> bool:
    """Whether `interpreter` would have nothing to make for this version. Raises BadInput for one that is not supported."""
    torch = torch_version(torch)
    return torch == Version(version("torch")).public or (_home(torch, _requirements(torch), root) / "complete").exists()


def _home(torch: str, wanted: list[str], root: Path) -> Path:
    """Where the environment is kept: by everything that is installed into it."""
    python = f"python-{sys.version_info.major}.{sys.version_info.minor}"
    return root / "environments" / f"torch-{torch}-{python}-{sha256(' '.join(wanted).encode()).hexdigest()[:8]}"


def torch_version(text: str) -> str:
    """As it is written in keys: `2.14` is 2.14.0. Raises BadInput for one that is not supported."""
    try:
        found = Version(text)
    except InvalidVersion as error:
        raise BadInput(f"--torch {text!r} is not a version.", remedy="for example --torch 2.13.0.") from error
    if not TORCH_MIN <= Version(found.base_version) < TORCH_BELOW:
        raise BadInput(f"--torch {text} is not supported; 2.11 to 2.15 are.", remedy="for example --torch 2.13.0.")
    return f"{found.public}.0" if len(found.release) == 2 and found.public == found.base_version else found.public


def _requirements(torch: str) -> list[str]:
    """What our own package requires, with this torch and the model libraries of here."""
    found = [Requirement(text) for text in requires(OURS) or ()]
    plain = sorted(str(one) for one in found if not one.marker and one.name not in ("torch", *_PINNED))
    return [f"torch=={torch}", *(f"{name}=={version(name)}" for name in _PINNED), *plain]


def _make(home: Path, wanted: list[str], *, torch: str, uv: str, environ: Mapping[str, str]) -> None:
    if home.exists():
        shutil.rmtree(home)
    free = shutil.disk_usage(home.parent).free
    if free < _NEEDED:
        raise StoreFull(
            f"--torch {torch}: an environment needs about {_NEEDED >> 30} GiB below {home.parent}, and {free / 2**30:.1f} are free.",
            remedy="make room, or set AOT_HOME to a larger disk.",
        )
    try:
        _run([uv, "venv", "--python", sys.executable, str(home)], torch, environ)
        _run([uv, "pip", "install", "--python", str(home / "bin" / "python"), *wanted], torch, environ)
        if headers := _headers(home):
            _run([uv, "pip", "install", "--python", str(home / "bin" / "python"), headers], torch, environ)
        (home / "complete").touch()
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _headers(home: Path) -> str:
    """What torch's own packages lack of a toolkit, of torch's CUDA version; nothing for a torch without CUDA."""
    cuda = constant(next(home.glob("lib/python3*/site-packages/torch/version.py")).read_text(), "cuda")
    if cuda is None:
        return ""
    major, minor, *_ = cuda.split(".")
    return f"nvidia-cuda-cccl=={major}.{minor}.*" if int(major) >= 13 else f"nvidia-cuda-cccl-cu{major}=={major}.{minor}.*"


def _run(command: list[str], torch: str, environ: Mapping[str, str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(environ))
    if not done.returncode:
        return
    said = " ".join(done.stderr.split())
    if f"no version of torch=={torch}" in said:
        raise BadInput(f"--torch {torch}: no package index that uv asks has this version.", remedy=f"name another. {said[:300]}")
    raise BadEnvironment(f"uv could not make an environment with torch {torch}: {said[-400:]}", remedy="repair that, and build again.")


def find_uv(environ: Mapping[str, str], what: str) -> str:
    """uv on PATH, else the one installed as a Python package. Raises BadEnvironment naming `what` needs it."""
    if found := shutil.which("uv", path=environ.get("PATH")):
        return found
    if beside := shutil.which("uv", path=str(Path(sys.executable).parent)):
        return beside
    raise BadEnvironment(f"{what} needs uv, and there is none on PATH.", remedy="pip install uv.")


def _link(folder: Path) -> Path:
    """Our own package, as it is here, in a folder by itself: nothing else of this environment must be seen there."""
    folder.mkdir(exist_ok=True)
    spec = find_spec(OURS)
    source = Path(spec.origin).parent if spec and spec.origin else None
    if source is None:
        raise BadEnvironment(f"our own package {OURS} has no folder that another environment could use.", remedy="install aot unzipped.")
    link = folder / OURS
    if not (link.is_symlink() and link.resolve() == source.resolve()):
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve(), target_is_directory=True)
    return folder
