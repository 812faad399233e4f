"""Blocks: the repeated parts of a module, found by what they are and not by a list of names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from aot.model.fingerprint import Fingerprint

_LEAST = 0.05  # of a module's weights that a kind of block holds: below, a graph of its own costs more than it saves


def repeated(module: nn.Module, *, unread: Collection[str] = ()) -> list[str]:
    """The paths of the module's repeated blocks: the outermost submodules of which another is the very same but for its weights.

    Compared are fingerprints, without the attributes `unread` of the blocks themselves, and of these only the ones of modules
    that look alike. Together the blocks of one kind hold a twentieth of the module's weights or more: embeddings of two inputs
    are alike too, and are no blocks.
    """
    least = _LEAST * _numel(module)
    alike = defaultdict[object, list[tuple[str, nn.Module]]](list)
    for path, child in module.named_modules():
        if path and child._modules and type(child).forward is not nn.Module.forward:  # a list is not called
            alike[_looks(child)].append((path, child))
    chosen: set[str] = set()
    for group in sorted(alike.values(), key=lambda group: -_numel(group[0][1])):  # a part is smaller than what holds it
        outermost = [(path, child) for path, child in group if not any(path.startswith(f"{outer}.") for outer in chosen)]
        if len(outermost) > 1 and sum(_numel(child) for _, child in outermost) >= least:
            chosen |= set(_same(outermost, least, unread))
    return [path for path, _ in module.named_modules() if path in chosen]


def _same(group: list[tuple[str, nn.Module]], least: float, unread: Collection[str]) -> Iterator[str]:
    """Those of which there is another."""
    kinds = defaultdict[object, list[tuple[str, nn.Module]]](list)
    for path, child in group:
        found = Fingerprint.of(child, fakes=True)
        if not found.unknown:
            kinds[found.without(unread).digest].append((path, child))
    for kind in kinds.values():
        if len(kind) > 1 and sum(_numel(child) for _, child in kind) >= least:
            yield from (path for path, _ in kind)


def numbered(module: nn.Module, mentioned: Collection[str]) -> list[str]:
    """The whole numbers that submodules keep as attributes and that no code that ran ever mentions: a block's place among the
    others, which makes each of them another and computes nothing."""
    own = (item for child in module.modules() for item in vars(child).items())
    return sorted({name for name, value in own if type(value) is int and name not in mentioned})


def large(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """Of these submodules those that hold a twentieth of the module's weights, together with the others of them that look alike."""
    alike = defaultdict[object, list[str]](list)
    for path in paths:
        alike[_looks(module.get_submodule(path))].append(path)
    return [path for group in alike.values() if share(module, group) >= _LEAST for path in group]


def share(module: nn.Module, paths: Iterable[str]) -> float:
    """What of the module's weights these of its submodules hold."""
    return sum(_numel(module.get_submodule(path)) for path in paths) / max(_numel(module), 1)


def _looks(module: nn.Module) -> object:
    weights = tuple((name, tuple(weight.shape), weight.dtype) for name, weight in module.named_parameters())
    return type(module), weights


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
