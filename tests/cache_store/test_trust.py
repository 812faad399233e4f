"""Who may speak for an artifact. Every case that must be refused names the code it is refused with."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Malformed, RootRefused, Untrusted
from aot.cache_store.lock import Lock, Pin
from aot.cache_store.manifest import Manifest
from aot.cache_store.signing import PublicKey, SigningKey, merge
from aot.cache_store.store import Ref
from aot.cache_store.trust import Policy, Rule, Trust, trust_file

STORE = "hf://acme/artifacts"
NAMES = ("ci", "second", "third", "stranger")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    return {name: SigningKey.of_machine(tmp_path_factory.mktemp(name)) for name in NAMES}


def manifest(name: str = "pixart-alpha") -> bytes:
    return Manifest(name=name, key={"part": "x"}, created="2026-01-02T03:04:05Z", producer={}, layers=(), files=()).encode()


def _same(raw: bytes) -> bytes:
    return raw


@dataclass(frozen=True)
class Case:
    """A policy and an artifact. `signed`: by whom; `rules`: keys, threshold, stores, names of each."""

    rules: tuple[tuple[tuple[str, ...], int, str, str], ...] = ((("ci",), 1, "*", "*"),)
    signed: tuple[str, ...] = ("ci",)
    origin: str = STORE
    name: str = "pixart-alpha"
    pinned: bool = False
    revoked_keys: tuple[str, ...] = ()
    revoked: bool = False
    machine: str = ""
    raw: Callable[[bytes], bytes] = _same  # what is asked about, made from what was signed
    envelope: Callable[[bytes], bytes] = _same
    digest_of_asked: bool = True

    def decide(self, keys: dict[str, SigningKey]) -> str:
        signed = manifest(self.name)
        envelope = None
        for name in self.signed:
            envelope = merge(envelope, keys[name].sign(signed))
        raw = self.raw(signed)
        digest = Digest.of(raw if self.digest_of_asked else signed)
        rules = tuple(Rule(tuple(keys[key].public for key in rule[0]), rule[1], (rule[2],), (rule[3],)) for rule in self.rules)
        trust = Trust(rules, frozenset(keys[name].public.id for name in self.revoked_keys), frozenset({digest} if self.revoked else ()))
        own = keys[self.machine].public if self.machine else None
        policy = Policy(trust, frozenset({digest} if self.pinned else ()), own)
        return policy.admit(raw, digest, envelope=envelope and self.envelope(envelope), origins=[self.origin]).by


def two(threshold: int) -> tuple[tuple[tuple[str, ...], int, str, str], ...]:
    return ((("ci", "second", "third"), threshold, "*", "*"),)


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(rules=(), pinned=True),
        Case(rules=(), pinned=True, signed=()),
        Case(rules=(), pinned=True, envelope=lambda _: b"garbage"),
        Case(rules=(), machine="ci"),
        Case(rules=(), machine="ci", origin="/home/me/.cache/aot"),
        Case(signed=("ci", "stranger")),
        Case(rules=two(2), signed=("ci", "second")),
        Case(rules=two(3), signed=("ci", "second", "third")),
        Case(rules=((("ci",), 1, "hf://acme/*", "*"),)),
        Case(rules=((("ci",), 1, STORE, "pixart-*"),)),
        Case(rules=((("ci",), 1, "hf://other/*", "*"), (("second",), 1, "*", "*")), signed=("ci", "second")),
        Case(revoked_keys=("second",), signed=("ci", "second")),
    ],
)
def test_what_is_listed_is_admitted(keys: dict[str, SigningKey], case: Case) -> None:
    assert case.decide(keys)


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


# every way of not being signed by who must sign it, with and without other people's rules about
NOT_SIGNED = {
    "nobody signed": {"signed": ()},
    "a stranger signed": {"signed": ("stranger",)},
    "the key is revoked": {"revoked_keys": ("ci",)},
    "one of two signed": {"rules": two(2)},
    "two of three signed": {"rules": two(3), "signed": ("ci", "second")},
    "a stranger makes up the number": {"rules": two(2), "signed": ("ci", "stranger")},
    "a revoked key makes up the number": {"rules": two(2), "signed": ("ci", "second"), "revoked_keys": ("second",)},
    "another organisation's store": {"rules": ((("ci",), 1, "hf://other/*", "*"),)},
    "a store whose name begins alike": {"rules": ((("ci",), 1, "hf://acme/artifact", "*"),)},
    "a path that looks like the store": {"rules": ((("ci",), 1, STORE, "*"),), "origin": f"/tmp/{STORE}"},
    "another scheme": {"rules": ((("ci",), 1, "hf://*", "*"),), "origin": "s3://acme/artifacts"},
    "another name": {"rules": ((("ci",), 1, "*", "sdxl*"),)},
    "the name in other letters": {"rules": ((("ci",), 1, "*", "PIXART-*"),)},
    "nobody is trusted": {"rules": ()},
    "the envelope is empty": {"envelope": lambda _: b""},
    "the envelope is garbage": {"envelope": lambda _: b"\x00" * 100},
    "the envelope is cut": {"envelope": lambda raw: raw[:-1]},
    "the envelope has a blank more": {"envelope": lambda raw: raw + b" "},
    "the envelope is huge": {"envelope": lambda raw: raw + b" " * (1 << 20)},
    "the envelope is of another type": {"envelope": lambda raw: raw.replace(b"vnd.aot", b"vnd.xot")},
    "the signature is another": {"envelope": lambda raw: raw.replace(b'"sig":"', b'"sig":"AAAA')},
}
BESIDE = {
    "": {},
    "with somebody else's pin": {"pinned": False},
    "on a machine with a key of its own": {"machine": "third"},
}


@pytest.mark.parametrize(("what", "beside"), list(itertools.product(NOT_SIGNED, BESIDE)))
def test_what_nobody_listed_vouches_for_is_untrusted(keys: dict[str, SigningKey], what: str, beside: str) -> None:
    if what == "two of three signed" and beside == "on a machine with a key of its own":
        return  # it did not sign, and is one of the three
    case = replace(Case(), **{**BESIDE[beside], **NOT_SIGNED[what]})
    with pytest.raises(Untrusted) as caught:
        case.decide(keys)
    assert caught.value.code == "AOT-E207"
    assert "aot trust add" in caught.value.remedy
    assert "aot lock" in caught.value.remedy


@pytest.mark.parametrize(
    "case",
    [
        Case(revoked=True),
        Case(revoked=True, pinned=True),
        Case(revoked=True, rules=(), machine="ci"),
        Case(revoked=True, rules=two(2), signed=("ci", "second")),
    ],
)
def test_a_revoked_artifact_is_untrusted_whoever_vouches_for_it(keys: dict[str, SigningKey], case: Case) -> None:
    with pytest.raises(Untrusted, match="revoked"):
        case.decide(keys)


@pytest.mark.parametrize("place", range(0, 90, 5))
@pytest.mark.parametrize("pinned", [False, True])
def test_other_bytes_than_were_signed_are_refused(keys: dict[str, SigningKey], place: int, pinned: bool) -> None:
    """Under their own digest they are nobody's; under the old one they are corrupt, and before anything else."""
    with pytest.raises(Untrusted):
        Case(raw=flipped(place)).decide(keys)
    with pytest.raises(Corrupt) as caught:
        Case(raw=flipped(place), digest_of_asked=False, pinned=pinned).decide(keys)
    assert caught.value.code == "AOT-E203"


def test_nothing_is_parsed_before_it_is_trusted(keys: dict[str, SigningKey]) -> None:
    """Signed garbage is corrupt; unsigned garbage is untrusted, and nobody looked inside."""
    garbage = b"{" * 100_000
    policy = Policy(Trust((Rule((keys["ci"].public,)),)))
    with pytest.raises(Untrusted):
        policy.admit(garbage, Digest.of(garbage), envelope=None, origins=[STORE])
    with pytest.raises(Corrupt):
        policy.admit(garbage, Digest.of(garbage), envelope=keys["ci"].sign(garbage), origins=[STORE])


def test_two_names_of_one_key_count_once(keys: dict[str, SigningKey]) -> None:
    twin = PublicKey("twin", keys["ci"].public.raw)
    with pytest.raises(Malformed, match="threshold 2"):
        Rule((keys["ci"].public, twin), threshold=2)
    policy = Policy(Trust((Rule((keys["ci"].public, twin, keys["second"].public), threshold=2),)))
    raw = manifest()
    with pytest.raises(Untrusted, match="1 of the 2"):
        policy.admit(raw, Digest.of(raw), envelope=keys["ci"].sign(raw), origins=[STORE])


def test_the_trust_file_reads_back_and_is_refused_when_others_may_write_it(tmp_path: Path, keys: dict[str, SigningKey]) -> None:
    trust = Trust().add(Rule((keys["ci"].public,), stores=("hf://acme/*",))).revoke(str(keys["third"].public)).revoke(str(Digest.of(b"x")))
    trust.write(tmp_path)
    assert Trust.read(tmp_path) == trust
    assert Trust.read(tmp_path / "nowhere") == Trust()
    trust_file(tmp_path).chmod(0o666)
    with pytest.raises(RootRefused, match="trust file"):
        Trust.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 2, "rules": [], "revoked": {"keys": [], "artifacts": []}}', '{"schema": 1, "rules": [{}], "revoked": {}}'],
)
def test_a_trust_file_that_cannot_be_read_admits_nothing(tmp_path: Path, text: str) -> None:
    trust_file(tmp_path).write_text(text)
    with pytest.raises(CodedError):
        Policy.read(tmp_path)


def test_revoking_wants_something_that_can_be_revoked(keys: dict[str, SigningKey]) -> None:
    trust = Trust().add(Rule((keys["ci"].public,)))
    assert trust.revoke(keys["ci"].public.name).revoked_keys == {keys["ci"].public.id}
    with pytest.raises(Malformed, match="no listed key"):
        trust.revoke("nobody")
    with pytest.raises(Malformed, match="revoked"):
        trust.revoke(keys["ci"].public.name).add(Rule((keys["ci"].public,)))


def test_a_lock_file_reads_back_and_pins_one_artifact_a_ref_and_store(tmp_path: Path) -> None:
    ref = Ref("pixart-alpha", Digest.of(b"key"))
    pins = [Pin(f"{STORE}@{'0' * 40}", ref, Digest.of(text), {"target": "cuda"}) for text in (b"old", b"new")]
    lock = Lock().pin(pins[:1]).pin(pins[1:])
    lock.write(tmp_path / "aot.lock")
    assert Lock.read(tmp_path / "aot.lock") == lock
    assert lock.pins == (pins[1],)
    assert Policy.read(tmp_path, tmp_path / "aot.lock").pins == {Digest.of(b"new")}
    (tmp_path / "aot.lock").chmod(0o666)
    with pytest.raises(RootRefused, match="lock file"):
        Lock.read(tmp_path / "aot.lock")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 1, "artifacts": [{}]}', '{"schema": 9, "artifacts": []}'])
def test_a_lock_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "aot.lock").write_text(text)
    with pytest.raises(Malformed):
        Lock.read(tmp_path / "aot.lock")
