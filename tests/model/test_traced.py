"""Traced code: what ran is compared with what would run, by bytecode, by syntax tree, and by what names lead to."""

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from aot.cache_store.canonical import decode, encode
from aot.errors import Unsupported
from aot.model import functions, traced
from aot.model.traced import TracedCode
from aot.model.tracing import tracing

SOURCE = '''
import functools
import torch
import torch.nn.functional as F
FACTOR = 2.0
UNREAD = 1

def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) * FACTOR
    return wrapper

def helper(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    """Says nothing."""
    return F.silu(x) + by

class Base(torch.nn.Module):
    slope = 0.5
    def forward(self, x):
        return self.inner(x)
    def inner(self, x):
        return helper(x) * self.slope

class Model(Base):
    @doubled
    def forward(self, x):
        return sum([super(Model, self).forward(x) for _ in range(2)])
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of this text, under the name that every text of a test has."""
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(text: str) -> ModuleType:
        (tmp_path / "a_traced_model.py").write_text(text)
        for cached in (tmp_path / "__pycache__").glob("*"):
            cached.unlink()
        sys.modules.pop("a_traced_model", None)
        importlib.invalidate_caches()
        return importlib.import_module("a_traced_model")

    return loaded


def _code(module: torch.nn.Module) -> TracedCode:
    with torch.no_grad(), tracing() as codes:
        torch.export.export(module, (torch.ones(2),), strict=False)
    return TracedCode.of(codes, module)


def test_functions_that_ran_are_noted_by_name_and_survive_json(load: Callable[[str], ModuleType]) -> None:
    model = load(SOURCE).Model()
    code = _code(model)
    ours = {name for name in code.functions if name.startswith("a_traced_model")}
    assert ours == {f"a_traced_model:{name}" for name in ("doubled", "helper", "Base.forward", "Base.inner", "Model.forward")}
    assert code.globals["a_traced_model:FACTOR"] == "2.0"
    assert "a_traced_model:UNREAD" not in code.globals
    assert code.globals["a_traced_model:F.silu"].startswith("torch.nn.functional:silu")
    assert TracedCode.from_json(decode(encode(code.to_json()), what="it")) == code
    assert code.differs(model) is None
    assert (code | code) == code


SAME = {
    "nothing": lambda text: text,
    "a comment": lambda text: text.replace("    return F", "    # said\n    return F"),
    "a docstring": lambda text: text.replace("Says nothing.", "Says something else."),
    "annotations": lambda text: text.replace("x: torch.Tensor, by: float", "x, by").replace(") -> torch.Tensor:", "):"),
    "a global that nothing reads": lambda text: text.replace("UNREAD = 1", "UNREAD = 2"),
    "lines and a new function": lambda text: text.replace("class Base", "\n\n\ndef other():\n    return 1\n\nclass Base"),
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_code_is_the_same(load: Callable[[str], ModuleType], what: str) -> None:
    code = _code(load(SOURCE).Model())
    assert code.differs(load(SAME[what](SOURCE)).Model()) is None


CHANGED: dict[str, tuple[Callable[[str], str], str]] = {
    "a function": (lambda text: text.replace("F.silu(x) + by", "F.silu(x) - by"), "helper was changed"),
    "a function of the torch": (lambda text: text.replace("F.silu(x) + by", "F.gelu(x) + by"), "helper was changed"),
    "a method": (lambda text: text.replace("range(2)", "range(3)"), "Model.forward was changed"),
    "a method of the base": (lambda text: text.replace("helper(x) * self", "helper(x) / self"), "Base.inner was changed"),
    "a decorator": (lambda text: text.replace("* FACTOR", "/ FACTOR"), "doubled was changed"),
    "a default": (lambda text: text.replace("by: float = 1.0", "by: float = 2.0"), "helper is"),
    "a global": (lambda text: text.replace("FACTOR = 2.0", "FACTOR = 3.0"), "FACTOR is 3.0, traced was 2.0"),
    "an attribute of a class": (lambda text: text.replace("slope = 0.5", "slope = 0.7"), "slope is 0.7, traced was 0.5"),
    "an override": (lambda text: text + "\n    def inner(self, x):\n        return x\n", "Model.inner is"),
    "a method gone": (lambda text: text.replace("    @doubled\n", ""), "Model.forward"),
    "a function gone": (lambda text: text.replace("def helper", "def assistant"), "helper is gone"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_changes_the_code_is_named(load: Callable[[str], ModuleType], what: str) -> None:
    change, named = CHANGED[what]
    code = _code(load(SOURCE).Model())
    assert named in (code.differs(load(change(SOURCE)).Model()) or "")


def test_another_minor_version_of_python_is_compared_by_trees(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    code = _code(load(SOURCE).Model())
    monkeypatch.setattr(traced, "MINOR", "3.99")
    monkeypatch.setattr(traced, "code_digest", lambda _: "another")
    assert code.differs(load(SAME["a docstring"](SOURCE)).Model()) is None
    assert "helper was changed" in (code.differs(load(CHANGED["a function"][0](SOURCE)).Model()) or "")


def _wrapped(plain: Any) -> Any:
    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("name", ["helper", "Base.forward", "Base.inner", "Model.forward", "F.silu", "FACTOR"])
def test_what_is_patched_in_the_process_is_named_though_it_says_it_is_the_old_one(load: Callable[[str], ModuleType], name: str) -> None:
    module = load(SOURCE)
    model, code = module.Model(), _code(module.Model())
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, module)
    plain = getattr(owner, last)
    with mock.patch.object(owner, last, _wrapped(plain) if callable(plain) else 5.0):
        assert last in (code.differs(model) or "")
    assert code.differs(model) is None


def test_what_no_name_leads_to_is_refused_unless_the_module_keeps_it(load: Callable[[str], ModuleType]) -> None:
    model = load(SOURCE).Model()
    model.inner = lambda x: x * 3  # described with its bytecode
    _code(model)
    module = load(SOURCE + "\n    def inner(self, x):\n        return HIDDEN[0](x)\nHIDDEN = [lambda x: x]\n")
    functions.linecache.checkcache()
    with pytest.raises(Unsupported, match="no name leads to it"):
        _code(module.Model())


def test_what_runs_beside_the_computation_is_not_noted(load: Callable[[str], ModuleType], caplog: pytest.LogCaptureFixture) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            handled.append(record)

    handled: list[logging.LogRecord] = []
    text = SOURCE.replace(
        "        return self.inner(x)", "        import logging\n        logging.warning('said')\n        return self.inner(x)"
    )
    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        code = _code(load(text).Model())
    finally:
        logging.getLogger().removeHandler(handler)
    assert handled
    assert not [name for name in code.functions if not name.startswith(("torch.", "a_traced_model"))]


def test_that_torch_compile_counts_modules_is_no_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wraps `nn.Module.__init__` at its first use in a process, before or after a model is traced there."""
    from torch._dynamo.mutation_guard import install_generation_tagging_init

    names = ("__init__", "__setstate__")
    plain = traced._bindings([torch.nn.Module, torch.nn.Linear], names, [])
    for name in (*names, "___needs_generation_tag_patch"):
        monkeypatch.setattr(torch.nn.Module, name, getattr(torch.nn.Module, name, True), raising=False)
    install_generation_tagging_init()
    for name in names:
        assert getattr(torch.nn.Module, name).__module__ == "torch._dynamo.mutation_guard"
    assert traced._bindings([torch.nn.Module, torch.nn.Linear], names, []) == plain
    assert plain["torch.nn.modules.module.Module"]["__init__"] == "torch.nn.modules.module:Module.__init__"
