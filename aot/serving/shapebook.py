"""Shape book at run time: the loaded graphs of one module, and which of them serves a call."""

from __future__ import annotations

from aot.artifact.promise import Promise
from aot.artifact.runner import Graph
from aot.model.signature import Signature


class ShapeBook:
    """The loaded graphs of one module: each signature's own, and those of ranges."""

    __slots__ = ("_exact", "_ranges")

    def __init__(self) -> None:
        self._exact: dict[Signature, Graph] = {}
        self._ranges: dict[Promise, Graph] = {}

    def add(self, graph: Graph) -> None:
        """Take `graph` in; one that is there already for the same calls stays."""
        if graph.entry.dynamic:
            self._ranges.setdefault(graph.entry.dynamic, graph)
        else:
            self._exact.setdefault(graph.entry.signature, graph)

    def extend(self, other: ShapeBook) -> None:
        """Take in what `other` has."""
        for graph in (*other._exact.values(), *other._ranges.values()):
            self.add(graph)

    @property
    def frozen(self) -> bool:
        """Whether a graph here has its weights inside."""
        return any(graph.entry.frozen for graph in (*self._exact.values(), *self._ranges.values()))

    def find(self, signature: Signature) -> tuple[Graph, Signature] | None:
        """The graph for exactly this signature, else one whose range holds it, else one for tensors that lie otherwise in memory;
        and the signature of the tensors that it is to be given."""
        if exact := self._exact.get(signature):
            return exact, signature
        ranges = [(graph, taken) for dynamic, graph in self._ranges.items() if (taken := dynamic.taken(signature))]
        if as_it_is := next((found for found in ranges if signature.seen_by(found[1]) == found[1]), None):
            return as_it_is
        alike = ((graph, built) for built, graph in self._exact.items() if built.lies_like(signature))
        return next((found for found in (*alike, *ranges) if not found[0].entry.mutates), None)

    def nearest(self, signature: Signature) -> str:
        """Why the graph that comes nearest does not serve a call of this signature."""
        reasons = [reason for known in self._exact if (reason := known.differs(signature))]
        reasons += [reason for dynamic in self._ranges if (reason := dynamic.refuses(signature))]
        if not reasons:
            return "no graph was loaded for it"
        more = f" (and {len(reasons) - 1} more in the shape book)" if len(reasons) > 1 else ""
        return min(reasons, key=len) + more
