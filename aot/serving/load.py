"""Load: attach a store's graphs to live modules, or say why not and leave them to the next step of the ladder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from aot.artifact.book import Book, Kind
from aot.artifact.facts import of_wish
from aot.artifact.golden import Golden
from aot.artifact.guard import Guard
from aot.artifact.key import Key
from aot.artifact.ledger import Ledger, log
from aot.artifact.opened import open_graphs, read_book
from aot.artifact.runner import Graph
from aot.cache_store.cached import CachedStore
from aot.cache_store.errors import CodedError
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted
from aot.errors import Miss
from aot.machine.settings import claim, complete
from aot.machine.target import Allow, Target
from aot.model.fingerprint import Fingerprint
from aot.request.options import Options
from aot.serving.canary import send
from aot.serving.dispatch import Dispatcher, OnMiss, ServedBy
from aot.serving.found import find
from aot.serving.jit import Jit
from aot.serving.packages import Borrowing
from aot.serving.reproduced import Reproduced
from aot.serving.resolve import Accepted, Candidate, Rejected, judge, nearest, set_aside
from aot.serving.reuse import Reused, reused
from aot.serving.shapebook import ShapeBook
from aot.serving.standin import Compiled

_TOLD_APART = 5  # artifacts of one architecture whose structures are read to find the nearest
_UNREAD = 1 << 30  # the distance of one that could not be read


@dataclass(frozen=True, slots=True)
class Wish:
    """How modules are to be compiled, and what serves a call that no graph serves.

    Those at the paths `optional` are served where an artifact has them, and else left as they are.
    """

    options: Options
    on_miss: OnMiss
    optional: frozenset[str] = frozenset()
    allow: frozenset[Allow] = frozenset()  # differences between machines that are taken although they degrade
    strict: bool = False  # what nothing serves is an error here, whatever serves a call that no graph serves


@dataclass(frozen=True, slots=True)
class Site:
    """Where a dispatcher goes, and what it will serve."""

    module: nn.Module
    kind: Kind
    graphs: ShapeBook = field(default_factory=ShapeBook)

    def with_more(self, other: Site) -> Site:
        """With what another artifact brings for the same module: its graphs, and the code that they were traced from."""
        self.graphs.extend(other.graphs)
        return replace(self, kind=replace(self.kind, code=self.kind.code | other.kind.code))

    def serve(self, policy: ServedBy, live: Fingerprint | None = None) -> Dispatcher:
        """Put a dispatcher in the module's place, and seal the module as it is, `live` if that is known: what its graphs were built
        from."""
        dispatcher = Dispatcher(self.module, self.graphs, self.kind, policy)
        dispatcher.put()
        live = live or Fingerprint.of(self.module, served=True, through=self.graphs.slotted)
        if self.kind.structure_differs(live) is None:
            dispatcher.seal(live.met)
        return dispatcher


def sites(book: Book, graphs: Iterable[Graph], modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], Site]:
    """Where the graphs of one artifact go, by component and path below it. `modules` are by the artifact's component paths."""
    found: dict[tuple[str, str], Site] = {}
    for graph in graphs:
        entry = graph.entry
        if entry.component in modules:
            for inner in entry.paths:
                module = modules[entry.component].get_submodule(inner)
                found.setdefault((entry.component, inner), Site(module, book.kinds[entry.kind])).graphs.add(graph)
    return found


def attach(modules: Mapping[str, nn.Module], store: Store, *, wish: Wish, here: Target, guard: Guard, ledger: Ledger) -> Callable[[], None]:
    """Load every artifact of `store` that serves `modules` (by path) on this machine, and put dispatchers in place.

    A module that nothing serves is left to `on_miss`. By default nothing of a store or artifact raises: what is missing,
    refused or corrupt is said once and costs a compile. With `on_miss="error"` that is raised instead, or Miss, before the
    first call. Raises Conflict when what was compiled before in this process needs opposite process settings. Returns what gives the
    settings back.
    """
    options, on_miss, optional = wish.options, wish.on_miss, wish.optional
    with ledger.timed("find"):
        wished = of_wish(options, here)
        fingerprints, facts, found = find(modules, store, wish.options, wished, allow=wish.allow)
    accepted = [candidate for candidate in found if isinstance(candidate.verdict, Accepted)]
    # without an artifact only what the mode names: the rest is the user's own affair, as it is under torch.compile
    settings = complete(options.process) if accepted else options.process
    release = claim(f"the {options.mode.title} compilation of {', '.join(modules)}", settings)
    opening = Opening(
        store, modules, fingerprints, here, guard, ledger, partial(judge, modules=facts, wish=wished, allow=wish.allow), wish.allow
    )
    try:
        for candidate in accepted:
            opening.open(candidate)
        unserved = set(modules) - opening.paths - optional
        borrowing = Borrowing.of(store, here, guard, ledger)
        borrowing.into({path: modules[path] for path in sorted(unserved)})
        unserved -= {path for path, _ in borrowing.sites}
        begins = reused(found, {path: facts[path] for path in unserved}, wished) if on_miss is OnMiss.COMPILE else []
        jit = Jit(options, store=store, artifacts=[*opening.exact, *opening.worth(begins)], ledger=ledger)
        for begin in begins:
            log.info("%s", begin)
        for path in unserved:
            policy, cause = OnMiss.ERROR if wish.strict else on_miss, opening.problems.get(path)
            why = opening.why(found, path, borrowing.problems.get(path, ""))
            fall_back(modules[path], path, on_miss=policy, jit=jit.compiled, why=why, ledger=ledger, cause=cause)
        for path in optional.intersection(opening.changed) - opening.paths:
            ledger.missed(OnMiss.EAGER.sentence(path, opening.changed[path]))
        for (path, inner), site in (opening.served | borrowing.sites).items():
            dispatcher = site.serve(ServedBy(path, here.device, on_miss, jit.compiled, ledger), None if inner else fingerprints[path])
            if wish.strict and (differs := dispatcher.differs()):
                raise Miss(f"{path}: {differs}.", remedy="build the artifact for this model, or leave strict out.")
        log.info("%s", ledger.said())
    except BaseException:
        release()
        raise
    return release


@dataclass(slots=True)
class Opening:
    """Artifacts being opened for live modules: what is served so far, and what stood in the way."""

    store: Store
    modules: Mapping[str, nn.Module]
    fingerprints: Mapping[str, Fingerprint]  # of the modules
    here: Target
    guard: Guard
    ledger: Ledger
    judge: Callable[[Key], Accepted | Rejected]
    allow: Collection[Allow] = ()
    served: dict[tuple[str, str], Site] = field(default_factory=dict)
    exact: list[Admitted] = field(default_factory=list)
    problems: dict[str, CodedError] = field(default_factory=dict)  # what kept the first artifact for a path from serving it
    changed: dict[str, str] = field(default_factory=dict)  # by path, what of the code is not what the first was traced from

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self.served}

    def open(self, candidate: Candidate) -> None:
        """Add one artifact's graphs to those served, or say what is wrong with it; a graph that a better one brought stays."""
        try:
            with self.ledger.timed("verify"):
                admitted = self.guard.admit(self.store, candidate.entry.digest)
            verdict = self.judge(Key(admitted.manifest.key))
            if isinstance(verdict, Accepted) and (not verdict.degraded or set(verdict.components) - self.paths):
                self._open(admitted, verdict)
        except CodedError as error:
            set_aside(self.store, error)
            assert isinstance(candidate.verdict, Accepted)
            for path in candidate.verdict.components:
                self.problems.setdefault(path, error)

    def why(self, found: list[Candidate], path: str, packages: str = "") -> str:
        """Why nothing was loaded for the component at `path`, of the artifacts `found`; and of `packages`, if there were some."""
        cause = self.problems.get(path)
        why = f"{cause.code} {cause.message.rstrip('.')}" if cause else self.changed.get(path)
        return why or packages or _why(self, found, path, self.fingerprints[path])

    def worth(self, begins: Iterable[Reused]) -> list[Admitted]:
        """The artifacts that these compilations begin from, of those that are on this machine and may be loaded."""
        store = self.store.local if isinstance(self.store, CachedStore) else self.store
        known = {one.digest for one in self.exact}
        digests = dict.fromkeys(candidate.entry.digest for begin in begins for candidate in begin.candidates)
        found: list[Admitted] = []
        for digest in (digest for digest in digests if digest not in known):
            try:
                found.append(self.guard.admit(store, digest))
            except CodedError as error:
                log.info("%s", error)
        return found

    def _open(self, admitted: Admitted, verdict: Accepted) -> None:
        if isinstance(self.store, CachedStore):
            with self.ledger.timed("pull"):
                self.store.bring(admitted.digest)
        if not verdict.degraded:
            self.exact.append(admitted)
        if verdict.needs_canary:
            with self.ledger.timed("canary"):
                send(self.store, admitted, here=self.here, guard=self.guard)
        for difference in verdict.degraded:
            log.warning("artifact %s: %s", admitted.digest.short, difference)
        same: dict[str, str] = {}  # the components whose code here is what was traced, or was found to do the same

        def choose(book: Book, golden: Callable[[], Golden | None]) -> set[str]:
            same.update({path: built for path, built in verdict.components.items() if self._is_same(path, built, admitted, book, golden)})
            return set(same.values())

        book, graphs = open_graphs(self.store, admitted, self.ledger, choose=choose, guard=self.guard)
        for path, built in same.items():
            name = f"{admitted.manifest.name}@{Key(admitted.manifest.key).digest.short}"
            self.ledger.served.setdefault(path, []).append(name)
            for (_, inner), site in sites(book, graphs, {built: self.modules[path]}).items():
                there = self.served.get((path, inner))
                self.served[path, inner] = there.with_more(site) if there else site

    def _is_same(self, path: str, built: str, admitted: Admitted, book: Book, golden: Callable[[], Golden | None]) -> bool:
        """Whether the code of the component at `path` is what its graphs were traced from; else why not is kept."""
        short = admitted.digest.short
        if reason := _of_another_state(book, built, self.fingerprints[path]):
            self.changed.setdefault(path, f"{reason} (artifact {short}; build it for this state of the model)")
            return False
        reason = _changed(book, built, self.modules[path], through=self.fingerprints[path].through)
        if reason is None:
            return True
        if Allow.SOURCE in self.allow and Reproduced(admitted.manifest).by(self.modules[path], built, book, golden()):
            log.warning("artifact %s: %s: %s; its golden outputs were reproduced", short, path, reason)
            return True
        self.changed.setdefault(path, f"{reason} (artifact {short}; build it again for this code)")
        return False


def _of_another_state(book: Book, component: str, live: Fingerprint) -> str | None:
    """What of a component that a graph stands for as a whole is not as it was built for, although its fingerprint is the same."""
    kinds = {entry.kind for entry in book.graphs if entry.component == component and "" in entry.paths}
    return next(filter(None, (book.kinds[kind].structure_differs(live) for kind in kinds)), None)


def _changed(book: Book, component: str, module: nn.Module, *, through: bool) -> str | None:
    """What of the code that a component's graphs were traced from is another here, in words, or None."""
    kinds = {entry.kind: entry.paths[0] for entry in book.graphs if entry.component == component}
    found = (book.kinds[kind].code.differs(module.get_submodule(path), through=through) for kind, path in kinds.items())
    return next(filter(None, found), None)


def _why(opening: Opening, found: list[Candidate], path: str, live: Fingerprint) -> str:
    """Why nothing was loaded for the component at `path`: what of it no artifact can be of, or the artifact that came nearest."""
    if live.unknown:
        return f"no artifact can be of it: {live.unknown.rstrip('.')}"
    if not found:
        return "the store holds no artifact"
    near = nearest(found, path)
    if not near:
        return "its artifact could not be loaded"
    built = [_built(opening, candidate, rejected, path) for candidate, rejected in near[:_TOLD_APART]]
    (candidate, rejected), structure = min(zip(near, built, strict=False), key=lambda pair: pair[1].distance(live) if pair[1] else _UNREAD)
    more = f" ({structure.differs(live)})" if structure else ""
    return f"no artifact for it; the nearest, {candidate.entry.ref.name}@{candidate.entry.ref.key.short}, differs in {rejected}{more}"


def _built(opening: Opening, candidate: Candidate, rejected: Rejected, path: str) -> Fingerprint | None:
    """What an artifact was built for, where its fingerprint differs: two digests tell nobody anything. Nothing is downloaded for it."""
    if f"{path} fingerprint" not in {part for part, _, _ in rejected.differences} or isinstance(opening.store, CachedStore):
        return None
    try:
        book = read_book(opening.store, opening.guard.admit(opening.store, candidate.entry.digest))
    except CodedError as error:
        set_aside(opening.store, error)
        return None
    return book.kinds[book.components[rejected.compared[path]]].fingerprint


def fall_back(
    module: nn.Module,
    path: str,
    *,
    on_miss: OnMiss,
    jit: Callable[[Callable[..., Any]], Callable[..., Any]],
    why: str,
    ledger: Ledger,
    cause: CodedError | None = None,
) -> None:
    """Serve a module for which no graph was loaded as `on_miss` says. Under `error` raises `cause`, or Miss if there is none."""
    if on_miss is OnMiss.ERROR:
        if cause:
            raise cause
        raise Miss(f"{path}: {why}.", remedy="build the artifact with `aot build`, or choose another on_miss.")
    ledger.missed(on_miss.sentence(path, why))
    ledger.unserved[path] = why
    if on_miss is OnMiss.COMPILE:
        Compiled(module, jit).put()
