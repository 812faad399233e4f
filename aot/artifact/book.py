"""Shape book: the graphs an artifact holds, each by the signature it serves. One file of the graph layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from aot.artifact.promise import Promise
from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.errors import LoadFailed
from aot.model.fingerprint import Fingerprint, Line
from aot.model.signature import Form, Signature, TensorSpec, form_from_json, form_to_json
from aot.model.traced import TracedCode
from aot.model.writes import SAME

FILE = "book.json"
# since graphs have slots; 5: ranges are promises; 4: a kind knows what a first call leaves; 3: graphs write into their arguments;
# 2: traced code is compared
_FORM = 6


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One compiled graph. `paths` are the submodules of the component that run through it, `""` being the component.

    It serves the calls of `signature`, and with `dynamic` all of that range. A `frozen` one has its weights inside. Its results
    are what the module returns, of the form `outputs`, then what it writes.
    """

    component: str
    paths: tuple[str, ...]
    kind: Digest  # of the fingerprint that those submodules share
    file: str
    signature: Signature
    outputs: Form
    dynamic: Promise | None = None
    frozen: bool = False
    writes: Form = SAME  # what the call leaves in the lists it was given
    mutates: bool = False  # tensors of the call itself, which must then be handed over as they are
    slots: tuple[tuple[str, TensorSpec], ...] = ()  # the inputs for adapters, which follow the weights


@dataclass(frozen=True, slots=True)
class Kind:
    """What the submodules of one kind share: their structure, the weights a graph of that kind takes, in order, and its code.

    `unread` are attributes of the submodules themselves that no code of theirs reads: which block it is, by number. `settled` are
    the lines of the fingerprint that an eager call changes: tables that are made when they are first asked for.
    """

    fingerprint: Fingerprint
    weights: tuple[tuple[str, TensorSpec], ...] = ()
    code: TracedCode = field(default_factory=TracedCode)
    unread: tuple[str, ...] = ()
    settled: tuple[Line, ...] = ()

    def differs(self, module: nn.Module, live: Fingerprint) -> str | None:
        """What makes `module`, whose fingerprint is `live`, another than the graphs were built from, in words, or None."""
        return self.structure_differs(live) or self.code.differs(module, through=live.through)

    def structure_differs(self, live: Fingerprint) -> str | None:
        """What of the fingerprint `live` is not as the graphs were built for, in words, or None."""
        live = live.without(self.unread)
        reason = self.fingerprint.differs(live)
        if reason and self.settled and self.fingerprint.updated(self.settled).differs(live) is None:
            return None
        return reason


@dataclass(frozen=True, slots=True)
class Book:
    """The graphs, the fingerprint of each component, and the kinds they refer to."""

    graphs: tuple[GraphEntry, ...]
    components: dict[str, Digest] = field(default_factory=dict)
    kinds: dict[Digest, Kind] = field(default_factory=dict)

    def inputs(self, entry: GraphEntry) -> tuple[tuple[str, TensorSpec], ...]:
        """What a graph takes before the tensors of a call: the weights, and then its slots."""
        return () if entry.frozen else (*self.kinds[entry.kind].weights, *entry.slots)

    def encode(self) -> bytes:
        return encode(
            {
                "form": _FORM,
                "graphs": [_graph_to_json(entry) for entry in self.graphs],
                "components": {path: digest.hex for path, digest in self.components.items()},
                "kinds": {digest.hex: _kind_to_json(kind) for digest, kind in self.kinds.items()},
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises Malformed when `raw` is not canonical JSON, LoadFailed for one of an earlier form; its digest was verified before,
        so its fields are as written."""
        value = decode(raw, what="shape book")
        if value.get("form") != _FORM:
            raise LoadFailed("it was built by another version of aot, whose shape book has another form.", remedy="build it again.")
        return cls(
            graphs=tuple(map(_graph_from_json, value["graphs"])),
            components={path: Digest(hex) for path, hex in value["components"].items()},
            kinds={Digest(hex): _kind_from_json(kind) for hex, kind in value["kinds"].items()},
        )


def _graph_to_json(entry: GraphEntry) -> dict[str, Any]:
    return {
        "component": entry.component,
        "paths": list(entry.paths),
        "kind": entry.kind.hex,
        "file": entry.file,
        "signature": entry.signature.to_json(),
        "outputs": form_to_json(entry.outputs),
        "dynamic": entry.dynamic and entry.dynamic.to_json(),
        "frozen": entry.frozen,
        "writes": form_to_json(entry.writes),
        "mutates": entry.mutates,
        "slots": _named_to_json(entry.slots),
    }


def _graph_from_json(value: dict[str, Any]) -> GraphEntry:
    return GraphEntry(
        component=value["component"],
        paths=tuple(value["paths"]),
        kind=Digest(value["kind"]),
        file=value["file"],
        signature=Signature.from_json(value["signature"]),
        outputs=form_from_json(value["outputs"]),
        dynamic=value["dynamic"] and Promise.from_json(value["dynamic"]),
        frozen=value["frozen"],
        writes=form_from_json(value["writes"]),
        mutates=value["mutates"],
        slots=_named_from_json(value["slots"]),
    )


def _named_to_json(named: Iterable[tuple[str, TensorSpec]]) -> list[Any]:
    return [[name, spec.to_json()] for name, spec in named]


def _named_from_json(value: list[Any]) -> tuple[tuple[str, TensorSpec], ...]:
    return tuple((name, TensorSpec.from_json(spec)) for name, spec in value)


def _kind_to_json(kind: Kind) -> dict[str, Any]:
    return {
        "fingerprint": kind.fingerprint.to_json(),
        "weights": _named_to_json(kind.weights),
        "code": kind.code.to_json(),
        "unread": list(kind.unread),
        "settled": Fingerprint(kind.settled).to_json(),
    }


def _kind_from_json(value: dict[str, Any]) -> Kind:
    return Kind(
        fingerprint=Fingerprint.from_json(value["fingerprint"]),
        weights=_named_from_json(value["weights"]),
        code=TracedCode.from_json(value["code"]),
        unread=tuple(value["unread"]),
        settled=Fingerprint.from_json(value["settled"]).lines,
    )
