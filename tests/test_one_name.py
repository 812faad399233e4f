"""One name is installed, `aot`: what else a folder holds under the names of our own folders is none of our business."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aot.cache_store.local import LocalStore

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).parent / "aot"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A training repository, say, with packages called as folders of ours; to import one is an error."""
    for name in ("recipes", "cache_store"):
        package = tmp_path / "foreign folder" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise ImportError('the {name} of another project was imported')\n")
    return tmp_path / "foreign folder"


def test_only_aot_is_installed(tmp_path: Path) -> None:
    program = "import aot; from importlib.util import find_spec; print([name for name in ('recipes', 'cache_store') if find_spec(name)])"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.stdout == "[]\n", done.stderr


def test_the_program_builds_in_a_folder_with_packages_of_those_names(store: LocalStore, foreign: Path) -> None:
    """As far as the fresh process of a build gets before it sees that the artifact is there: it has imported everything by then."""
    words = ("build", "pixart-alpha", "--variant", "tiny", "--gpu", "cpu", "--shape", "64x64", "--shape", "64x96", "--json")
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, cwd=foreign, env={**os.environ, "AOT_HOME": str(store.root)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fresh"] is False


def test_a_script_beside_packages_of_those_names_is_served(cached: LocalStore, foreign: Path) -> None:
    script = shutil.copy(ROOT / "scripts" / "serve_pixart.py", foreign)
    words = ("--variant", "tiny", "--shape", "64x64", "--requests", "1", "--steps", "2")
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, cwd=foreign)
    assert done.returncode == 0, done.stderr
    (account,) = json.loads(done.stdout[done.stdout.index("\n[") :])
    assert (len(account["artifacts"]), account["misses"]) == (1, {})
