"""Offer: what a store has for one machine, the best first, and why the rest would not be loaded there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aot.machine.fit import built_for
from aot.machine.target import Allow, Difference, Target, Weight
from aot.request.mode import Mode
from aot.shipping.listing import Row


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for; an empty text is no wish."""

    recipe: str
    mode: str = ""
    variant: str = ""
    allow: frozenset[Allow] = frozenset()

    def differs(self, row: Row) -> list[str]:
        """In what a row is not what is looked for; a sentence each."""
        found = []
        if self.mode and Mode.parse(self.mode) != Mode.parse(row.part("mode")):
            found.append(f"mode is {row.mode}, asked for {Mode.parse(self.mode).title}")
        if self.variant and self.variant != row.part("variant"):
            found.append(f"variant is {row.part('variant')}, asked for {self.variant}")
        return found


@dataclass(frozen=True, slots=True)
class Offer:
    """One artifact, and how it differs from the machine and from what is wanted."""

    row: Row
    differences: tuple[Difference, ...]
    refused: tuple[str, ...]  # sentences; none if it would be loaded

    @property
    def degraded(self) -> int:
        return sum(difference.weight is Weight.DEGRADING for difference in self.differences)


def offers(rows: Iterable[Row], wanted: Wanted, machine: Callable[[Target], Target]) -> list[Offer]:
    """An offer for each artifact of the recipe: those that would be loaded first; of them those made for this very machine, then
    the tuned, then the newest. `machine` tells the machine that an artifact for that target would be loaded on."""
    found = [_offer(row, wanted, machine) for row in rows if row.ref.name == wanted.recipe]
    newest = sorted(found, key=lambda offer: offer.row.entry.created, reverse=True)
    return sorted(newest, key=lambda offer: (len(offer.refused), offer.degraded, "tuning" in offer.row.entry.key))


def _offer(row: Row, wanted: Wanted, machine: Callable[[Target], Target]) -> Offer:
    built = Target.of_parts(row.entry.key)
    differences = tuple(built_for(row.entry.key, machine(built)))
    refused = [str(difference) for difference in differences if difference.refused(wanted.allow)]
    return Offer(row, differences, (*refused, *wanted.differs(row)))
