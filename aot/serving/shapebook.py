"""Shape book at run time: the loaded graphs of one module, and which of them serves a call."""

from __future__ import annotations

from collections.abc import Iterator

from aot.artifact.promise import Promise
from aot.artifact.runner import Graph
from aot.model.signature import Signature


class ShapeBook:
    """The loaded graphs of one module: each signature's own, and those of ranges; those with slots for adapters apart."""

    __slots__ = ("_exact", "_ranges", "_slotted")

    def __init__(self) -> None:
        self._exact: dict[Signature, Graph] = {}
        self._ranges: dict[Promise, Graph] = {}
        self._slotted: ShapeBook | None = None

    def add(self, graph: Graph) -> None:
        """Take `graph` in; one that is there already for the same calls stays."""
        if graph.entry.slots:
            self._slotted = self._slotted or ShapeBook()
        book = self._slotted if graph.entry.slots and self._slotted else self
        if graph.entry.dynamic:
            book._ranges.setdefault(graph.entry.dynamic, graph)
        else:
            book._exact.setdefault(graph.entry.signature, graph)

    def extend(self, other: ShapeBook) -> None:
        """Take in what `other` has."""
        for graph in other:
            self.add(graph)

    def __iter__(self) -> Iterator[Graph]:
        yield from (*self._exact.values(), *self._ranges.values())
        yield from self._slotted or ()

    @property
    def frozen(self) -> bool:
        """Whether a graph here has its weights inside."""
        return any(graph.entry.frozen for graph in self)

    @property
    def slotted(self) -> bool:
        """Whether a graph here has room for adapters."""
        return self._slotted is not None

    def find(self, signature: Signature, *, adapted: bool = False) -> tuple[Graph, Signature] | None:
        """The graph for exactly this signature, else one whose range holds it, else one for tensors that lie otherwise in memory;
        and the signature of the tensors that it is to be given. `adapted`: of a module with adapters in it, which need slots; without
        them one that has none is quicker."""
        if adapted:
            return self._slotted.find(signature) if self._slotted else None
        return self._find(signature) or (self._slotted.find(signature) if self._slotted else None)

    def _find(self, signature: Signature) -> tuple[Graph, Signature] | None:
        if exact := self._exact.get(signature):
            return exact, signature
        ranges = [(graph, taken) for dynamic, graph in self._ranges.items() if (taken := dynamic.taken(signature))]
        if as_it_is := next((found for found in ranges if signature.seen_by(found[1]) == found[1]), None):
            return as_it_is
        alike = ((graph, built) for built, graph in self._exact.items() if built.lies_like(signature))
        return next((found for found in (*alike, *ranges) if not found[0].entry.mutates), None)

    def nearest(self, signature: Signature, *, adapted: bool = False) -> str:
        """Why the graph that comes nearest does not serve a call of this signature."""
        book = self._slotted if adapted and self._slotted else self
        reasons = [reason for known in book._exact if (reason := known.differs(signature))]
        reasons += [reason for dynamic in book._ranges if (reason := dynamic.refuses(signature))]
        if not reasons:
            return self._slotted.nearest(signature) if self._slotted and book is self else "no graph was loaded for it"
        more = f" (and {len(reasons) - 1} more in the shape book)" if len(reasons) > 1 else ""
        return min(reasons, key=len) + more
