"""Mutation: whether a traced program writes to tensors of its call."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import getitem
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Node


def mutates(program: torch.export.ExportedProgram, names: Collection[str]) -> bool:
    """Whether an operator writes to one of the inputs of these names, or to what may share memory with one.

    What a program says of itself holds once it is made functional, which a traced one is not yet. An operator of operators
    (`with torch.autocast(...)` is one) that is given an input is taken to write to it.
    """
    inputs = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in names}
    shown: dict[Node, Node] = {node: node for node in inputs}  # what a value may share memory with
    for node in program.graph.nodes:
        if node.op == "call_function":
            if isinstance(node.target, HigherOrderOperator) and shown.keys() & set(node.all_input_nodes):
                return True
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
    if getattr(node.target, "__name__", "").partition(".")[0] in _UNSAID:
        yield from ((given, _PASSED_ON) for given in node.all_input_nodes)
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None:
            for each in given if isinstance(given, list | tuple) else [given]:
                yield each, argument.alias_info


# operators that may return what they are given, and whose schema does not say so
_UNSAID = frozenset(
    {
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as", "to", "broadcast_tensors", "meshgrid"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "contiguous", "reshape", "flatten", "nan_to_num", "pad", "constant_pad_nd", "clamp"),
    }
)


class _PassedOn:
    is_write = False


_PASSED_ON = _PassedOn()
