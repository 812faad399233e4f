"""Mutation: whether a traced program writes to tensors of its call."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import getitem
from typing import Any

import torch
from torch.fx import Node


def mutates(program: torch.export.ExportedProgram, names: Collection[str]) -> bool:
    """Whether an operator writes to one of the inputs of these names, or to what shares memory with one.

    What a program says of itself holds once it is made functional, which a traced one is not yet.
    """
    inputs = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in names}
    shown: dict[Node, Node] = {node: node for node in inputs}  # what a value may share memory with
    for node in program.graph.nodes:
        if node.op == "call_function":
            for given, alias in _aliases(node):
                if given in shown and alias.is_write:
                    return True
                if given in shown:
                    shown[node] = shown[given]
    return False


def _aliases(node: Node) -> Iterator[tuple[Any, Any]]:
    """The arguments whose memory the result may share, or that are written to, with torch's own word on each."""
    if node.target is getitem:
        yield node.args[0], _PASSED_ON
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None:
            for each in given if isinstance(given, list | tuple) else [given]:
                yield each, argument.alias_info


class _PassedOn:
    is_write = False


_PASSED_ON = _PassedOn()
