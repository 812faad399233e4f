"""What `aot.stats()` says, summed up."""

import aot


def hits() -> int:
    """How many calls graphs have served, of everything that is in force."""
    return sum(sum(ledger["hits"].values()) for ledger in aot.stats())
