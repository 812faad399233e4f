"""Trust: whose artifacts may run here. The decision is pure, and the same online and offline."""

import os
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from aot.cache_store.canonical import decode_loosely, encode_for_people
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, Untrusted, named
from aot.cache_store.fields import Fields
from aot.cache_store.lock import Lock
from aot.cache_store.manifest import MAX_MANIFEST, Manifest
from aot.cache_store.root import check_owned
from aot.cache_store.signing import PublicKey, SigningKey, claimed, machine_key, signers
from aot.cache_store.store import Store
from aot.cache_store.written import write_whole

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """`threshold` distinct keys of `keys` speak for the artifacts `names` in the stores `stores` (shell patterns; `*` is anything)."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1
    stores: tuple[str, ...] = ("*",)
    names: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        distinct = len({key.id for key in self.keys})
        if not 1 <= self.threshold <= distinct:
            raise Malformed(f"threshold {self.threshold} is not between 1 and the {distinct} distinct keys of its rule.")

    def covers(self, name: str, origins: Iterable[str]) -> bool:
        stores = any(fnmatchcase(origin, pattern) for origin in origins for pattern in self.stores)
        return stores and any(fnmatchcase(name, pattern) for pattern in self.names)


@dataclass(frozen=True, slots=True)
class Trust:
    """What the operator listed: `trust.json` of a store root."""

    rules: tuple[Rule, ...] = ()
    revoked_keys: frozenset[str] = frozenset()  # ids
    revoked: frozenset[Digest] = frozenset()  # artifacts

    def add(self, rule: Rule) -> Self:
        """Raises Malformed when one of its keys is revoked."""
        for key in rule.keys:
            if key.id in self.revoked_keys:
                raise Malformed(f"key {key.name!r} is revoked.", remedy="let its owner make another key; a revoked one stays revoked.")
        return self if rule in self.rules else replace(self, rules=(*self.rules, rule))

    def revoke(self, what: str) -> Self:
        """By key line, key id or name of a listed key, or an artifact's `sha256:…`. Raises Malformed for anything else."""
        if what.startswith("sha256:"):
            return replace(self, revoked=self.revoked | {Digest.parse(what)})
        if what.startswith("aot-ed25519:"):
            return replace(self, revoked_keys=self.revoked_keys | {PublicKey.parse(what).id})
        listed = {key.id for rule in self.rules for key in rule.keys if what in (key.id, key.name)}
        if not listed:
            raise Malformed(
                f"{what!r} is no listed key, no key line and no sha256:… of an artifact.", remedy="`aot trust ls` lists the keys."
            )
        return replace(self, revoked_keys=self.revoked_keys | listed)

    def encode(self) -> bytes:
        rules = [{**asdict(rule), "keys": list(map(str, rule.keys))} for rule in self.rules]
        revoked = {"keys": sorted(self.revoked_keys), "artifacts": sorted(map(str, self.revoked))}
        return encode_for_people({"schema": SCHEMA, "rules": rules, "revoked": revoked})

    @classmethod
    def parse(cls, raw: bytes, *, what: str = "trust file") -> Self:
        """Raises Malformed with the field that is wrong."""
        fields = Fields(decode_loosely(raw, what=what), what)
        if (schema := fields.take("schema", int)) != SCHEMA:
            raise Malformed(f"{what}: schema {schema} is unknown; this version reads {SCHEMA}.")
        rules = tuple(map(_rule, fields.take("rules", list)))
        revoked = Fields(fields.take("revoked", dict), f"{what} revoked")
        keys, artifacts = revoked.words("keys"), revoked.words("artifacts")
        for each in (fields, revoked):
            each.finish()
        return cls(rules, frozenset(keys), frozenset(map(Digest.parse, artifacts)))

    @classmethod
    def read(cls, root: Path) -> Self:
        """That of the store root; an empty one where there is none. Raises Malformed, RootRefused, Unreachable."""
        path = trust_file(root)
        with named(path):
            if not path.exists():
                return cls()
            check_owned(path, what="trust file")
            return cls.parse(path.read_bytes(), what=str(path))

    def write(self, root: Path) -> None:
        write_whole(trust_file(root), self.encode())


def trust_file(root: Path) -> Path:
    return root / "trust.json"


def _rule(value: Any) -> Rule:
    fields = Fields(value, "rule")
    rule = Rule(
        keys=tuple(map(PublicKey.parse, fields.words("keys"))),
        threshold=fields.take("threshold", int),
        stores=fields.words("stores"),
        names=fields.words("names"),
    )
    fields.finish()
    return rule


@dataclass(frozen=True, slots=True)
class Admitted:
    """A manifest that may be used, and on whose word."""

    digest: Digest
    manifest: Manifest
    by: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What decides: the operator's list, the artifacts pinned in a lock file, and this machine's own key."""

    trust: Trust = field(default_factory=Trust)
    pins: frozenset[Digest] = frozenset()
    machine: PublicKey | None = None

    @classmethod
    def read(cls, root: Path, lock: Path | None = None) -> Self:
        """Of the store at `root` and the lock file. Raises Malformed, RootRefused, Unreachable: there is no lesser policy.

        A key that only root may read, in a store that came with an image, is nobody's here: what it signed is to be listed.
        """
        own = SigningKey(machine_key(root)).public if os.access(machine_key(root), os.R_OK) else None
        pins = frozenset(pin.digest for pin in Lock.read(lock).pins) if lock else frozenset[Digest]()
        return cls(Trust.read(root), pins, own)

    def admit(self, raw: bytes, digest: Digest, *, envelope: bytes | None, origins: Collection[str]) -> Admitted:
        """Size, digest, revocation, signatures over the raw bytes, only then parse; then scope. Raises Corrupt, Untrusted.

        `origins`: the locations of the stores that these bytes came from.
        """
        if len(raw) > MAX_MANIFEST or Digest.of(raw) != digest:
            raise Corrupt(f"manifest {digest.short}: sha256 mismatch.", culprit=str(digest))
        if digest in self.trust.revoked:
            raise Untrusted(f"artifact {digest.short} was revoked.", remedy="build or pull another; `aot trust ls` lists what is revoked.")
        pinned = digest in self.pins
        signed = set() if pinned else self._signed(raw, digest, envelope, origins)
        try:
            manifest = Manifest.parse(raw)
        except Malformed as error:
            raise Corrupt(f"manifest {digest.short}: {error.message}", culprit=str(digest)) from error
        by = "pinned in the lock file" if pinned else self._rule_met(manifest.name, digest, signed, origins)
        return Admitted(digest, manifest, by)

    def admit_from(self, store: Store, digest: Digest) -> Admitted:
        """What `store` holds under that digest. Raises as `admit` does, and Missing, Unreachable."""
        return self.admit(store.manifest(digest), digest, envelope=store.envelope(digest), origins=store.origins(digest))

    def _rules(self) -> tuple[Rule, ...]:
        return (*self.trust.rules, Rule((self.machine,))) if self.machine else self.trust.rules

    def _signed(self, raw: bytes, digest: Digest, envelope: bytes | None, origins: Collection[str]) -> set[str]:
        """The ids of listed keys that signed it; at least one."""
        known = {key.id: key for rule in self._rules() for key in rule.keys if key.id not in self.trust.revoked_keys}
        where = ", ".join(sorted(origins))
        try:
            names = claimed(envelope)
            found = signers(raw, envelope, known.values())
        except Malformed as error:
            raise Untrusted(f"artifact {digest.short} of {where}: {error.message}", remedy=_remedy(where)) from error
        if found:
            return found
        if not names:
            raise Untrusted(f"artifact {digest.short} of {where} is not signed, and not pinned.", remedy=_remedy(where))
        if revoked := set(names) & self.trust.revoked_keys:
            raise Untrusted(
                f"artifact {digest.short} of {where} is signed by key {min(revoked)[:12]}, which was revoked.", remedy=_remedy(where)
            )
        if wrong := set(names) & set(known):
            raise Untrusted(
                f"artifact {digest.short} of {where}: its signature by {known[min(wrong)].name} is wrong.", remedy=_remedy(where)
            )
        ids = ", ".join(name[:12] for name in names)
        raise Untrusted(f"artifact {digest.short} of {where} is signed by keys that are not trusted here: {ids}.", remedy=_remedy(where))

    def _rule_met(self, name: str, digest: Digest, signed: set[str], origins: Collection[str]) -> str:
        """Who vouches for it, by the first rule that is met. Raises Untrusted with the rule that came nearest."""
        where, why = ", ".join(sorted(origins)), "no rule of its signers covers this store and name"
        for rule in self._rules():
            vouching = {key.id: key.name for key in rule.keys if key.id in signed}
            if not vouching or not rule.covers(name, origins):
                continue
            if len(vouching) >= rule.threshold:
                return "signed by " + ", ".join(sorted(vouching.values()))
            why = f"{len(vouching)} of the {rule.threshold} signatures that its rule asks for"
        raise Untrusted(f"artifact {digest.short}, {name} of {where}: {why}.", remedy=_remedy(where))


def _remedy(where: str) -> str:
    return (
        f"`aot trust add KEYLINE --store {where}` with its signer's key line, or `aot lock RECIPE --from {where}` to pin these very bytes."
    )


def trust_keys(
    root: Path, keys: Collection[str], *, stores: Collection[str] = ("*",), names: Collection[str] = ("*",), threshold: int = 1
) -> Rule:
    """List a rule of these key lines at the store root, unless it is there. Raises Malformed for one that is none or is revoked."""
    rule = Rule(tuple(map(PublicKey.parse, keys)), threshold, tuple(stores), tuple(names))
    Trust.read(root).add(rule).write(root)
    return rule
