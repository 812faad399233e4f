"""Found: what of a store may serve live modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from aot.artifact.facts import of_module
from aot.cache_store.store import Store
from aot.machine.target import Allow
from aot.model.fingerprint import Fingerprint
from aot.model.slots import has_adapters
from aot.request.options import Options
from aot.serving.resolve import Accepted, Candidate, Facts, candidates


def find(
    modules: Mapping[str, nn.Module], store: Store, options: Options, wish: Facts, *, allow: Collection[Allow]
) -> tuple[dict[str, Fingerprint], dict[str, Facts], list[Candidate]]:
    """The modules' fingerprints and facts, and what of the store may serve them. Where there are adapters in a module and nothing was
    built with these very ones, it is what it was without: graphs may have slots for them."""
    fingerprints = {path: Fingerprint.of(module) for path, module in modules.items()}
    facts: dict[str, Facts] = {path: of_module(module, fingerprints[path], options) for path, module in modules.items()}
    found = candidates(store, modules=facts, wish=wish, allow=allow)
    served = {path for candidate in found if isinstance(candidate.verdict, Accepted) for path in candidate.verdict.components}
    adapted = [path for path, module in modules.items() if path not in served and has_adapters(module)]
    if not adapted:
        return fingerprints, facts, found
    beneath = {path: Fingerprint.of(modules[path], through=True) for path in adapted}
    bare = facts | {path: of_module(modules[path], found, options) for path, found in beneath.items()}
    others = candidates(store, modules=bare, wish=wish, allow=allow)
    roomy = [other for other in others if "lora" in other.entry.key and isinstance(other.verdict, Accepted)]
    if not any(path in candidate.verdict.components for candidate in roomy for path in adapted):  # type: ignore[union-attr]
        return fingerprints, facts, found
    return fingerprints | beneath, bare, others
