"""Put first on the path of a script that is watched: waits for diffusers to be imported, and then lets aot look on.

Imports nothing that starting Python does not, and runs the sitecustomize that it hides.
"""

# mypy: ignore-errors

import sys
from importlib import util
from pathlib import Path

_AWAITED = ("diffusers.pipelines.pipeline_utils", "diffusers.modular_pipelines.modular_pipeline")


class _Awaiting:
    """A finder that finds nothing of its own: it has what is awaited found by the others, and looked at once it is executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _AWAITED:
            return None
        for finder in sys.meta_path:
            if finder is not _Awaiting and (spec := finder.find_spec(name, path, target)) and spec.loader:
                execute = spec.loader.exec_module

                def exec_module(module, execute=execute):
                    execute(module)
                    try:
                        from aot.verbs.hook import watch

                        watch(module)
                    except Exception as error:  # the program goes on, whatever is wrong with watching it
                        print(f"aot: {name} is not looked at: {type(error).__name__}: {error}", file=sys.stderr)

                spec.loader.exec_module = exec_module
                return spec
        return None


def _hidden():
    """Run the sitecustomize that would be found without this one."""
    here = Path(__file__).resolve().parent
    for folder in sys.path:
        file = Path(folder or ".") / "sitecustomize.py"
        if file.resolve().parent != here and file.is_file():
            spec = util.spec_from_file_location("sitecustomize", file)
            module = util.module_from_spec(spec)
            sys.modules["sitecustomize"] = module
            spec.loader.exec_module(module)
            return


sys.meta_path.insert(0, _Awaiting)
_hidden()
