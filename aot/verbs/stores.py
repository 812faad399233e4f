"""The stores, the policy and the machines that the verbs share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from aot.machine.sku import CPU

if TYPE_CHECKING:
    from aot.artifact.guard import Guard
    from aot.cache_store.local import LocalStore
    from aot.cache_store.store import PrunableStore, Store
    from aot.machine.target import Allow, Target
    from aot.shipping.offer import Offer, Wanted

Say: TypeAlias = Callable[[str], None]  # told, a sentence at a time, what is not the outcome itself
Moving: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # of what and how many bytes; told of them


def log(sentence: str) -> None:
    """Where sentences go that nobody listens to."""
    logging.getLogger("aot").info("%s", sentence)


def unseen(_: str, __: int) -> AbstractContextManager[Callable[[int], None]]:
    """Bytes that move without a bar."""
    return nullcontext(lambda _: None)


def local_store() -> LocalStore:
    """That of this user: AOT_HOME, else `aot` in the cache directory."""
    from aot.cache_store.local import LocalStore
    from aot.cache_store.root import default_root

    return LocalStore(default_root(os.environ))


def open_remote(location: str) -> PrunableStore:
    """A store at a distance, for a program: no request waits for ever, and the client draws no bars of its own."""
    from aot.cache_store.location import open_store

    if location.startswith("hf://"):
        from huggingface_hub.utils import disable_progress_bars

        from aot.cache_store.hub_errors import limit_waiting

        limit_waiting()
        disable_progress_bars()
    return open_store(location)


def open_source(location: str) -> Store:
    """A store to read from: as `open_remote`; and a repository or folder of packages that others made."""
    from aot.shipping.packages import with_packages

    folder = Path(location).expanduser().absolute()
    if "://" not in location and folder.is_dir() and not (folder / "v1").exists():  # somebody's, and no store of one's own
        location = folder.as_uri()
    return with_packages(open_remote(location))


def named_in(recipe: str, store: str) -> tuple[str, Store]:
    """What is asked for, and where: a recipe and a store, or a store alone that holds artifacts of one name. Raises BadInput, Missing."""
    from aot.cache_store.errors import Missing
    from aot.cache_store.store import names_in
    from aot.errors import BadInput

    if store or "/" not in recipe:
        return recipe, open_source(store)
    source = open_source(recipe)
    names = names_in(source)
    if not names:
        raise Missing(f"{recipe} has no artifacts, and no packages.", remedy="`aot push` puts artifacts there.")
    if len(names) > 1:
        remedy = f"name one: `aot pull NAME --from {recipe}`."
        raise BadInput(f"{recipe} has artifacts of {len(names)} names: {', '.join(names)}.", remedy=remedy)
    return names[0], source


def open_guard(store: LocalStore) -> Guard:
    """The policy of that store's root, with the pins of the lock file."""
    from aot.artifact.guard import Guard

    return Guard.of(store.root, os.environ)


def allowed(words: Collection[str]) -> frozenset[Allow]:
    """The differences between machines that are taken although they degrade. Raises BadInput for another word."""
    from aot.choice import choice
    from aot.machine.target import Allow

    return frozenset(Allow(choice(word, known=list(Allow), field="allow")) for word in words)


def machine(gpu: str, built: Target) -> Target:
    """The machine asked about; this one's GPU for an artifact for GPUs, if it has one."""
    from aot.machine.device import gpus_here

    if gpu != "auto":
        return _named(gpu)
    return _detected("cuda" if built.device != CPU and gpus_here() else CPU)


@cache
def _named(gpu: str) -> Target:
    from aot.machine.target import Target

    return Target.named(gpu)


@cache
def _detected(device: str) -> Target:
    from aot.machine.target import Target

    return Target.detect(device)


def ask(store: Store, wanted: Wanted, gpu: str) -> list[Offer]:
    """What the store has of a recipe for that machine. Raises Missing naming the recipes that it has; RolledBack."""
    from aot.cache_store.errors import Missing
    from aot.cache_store.history import check_history
    from aot.cache_store.store import names_in
    from aot.shipping.listing import Row
    from aot.shipping.offer import offers

    rows = [Row(entry) for entry in store.entries(within={"recipe": wanted.recipe}) if entry.key]
    check_history(store, local_store())
    found = offers(rows, wanted, lambda built: machine(gpu, built))
    if not found:
        names = ", ".join(names_in(store)) or "nothing"
        raise Missing(f"{store.location} has no artifact of {wanted.recipe!r}; it has: {names}.", remedy="`aot build` and `aot push` one.")
    return found


def choose(found: list[Offer], *, every: bool, say: Say) -> list[Offer]:
    """Those to take, best first; says why the others are not. Raises Miss when none would be loaded."""
    from aot.errors import Miss

    for offer in found:
        if offer.refused:
            say(f"not {describe(offer)}: {'; '.join(offer.refused)}")
    fitting = [offer for offer in found if not offer.refused]
    if not fitting:
        name, why = found[0].row.ref.name, "; ".join(found[0].refused)
        raise Miss(
            f"none of the {len(found)} artifacts of {name} would be loaded there; the first: {why}.",
            remedy="build one for that machine: `aot build --gpu`; `aot targets --here` says what this one is.",
        )
    if not every and len(fitting) > 1:
        say(f"{len(fitting) - 1} more would be loaded too (--all, or choose by --mode and --variant)")
    return fitting


def describe(offer: Offer) -> str:
    row = offer.row
    return f"{row.ref.name} {row.digest.short} ({row.target}, {row.mode}, {row.part('variant')}, {row.shapes})"
