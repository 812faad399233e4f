import base64
import contextlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from aot.cache_store.errors import Malformed, RootRefused
from aot.cache_store.signing import MAX_SIGNATURES, PAYLOAD_TYPE, PublicKey, SigningKey, claimed, machine_key, merge, signers

MANIFEST = b'{"schema":1}'


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.of_machine(tmp_path)


def standard(envelope: bytes, payload: bytes) -> Envelope:
    """Our detached envelope as the standard has it, read by an implementation that is not ours."""
    return Envelope.from_dict({**json.loads(envelope), "payload": base64.b64encode(payload).decode()})


def standard_key(key: PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw), keyid=key.id)


def test_what_we_sign_another_implementation_of_dsse_verifies(key: SigningKey) -> None:
    envelope = standard(key.sign(MANIFEST), MANIFEST)
    assert envelope.payload_type == PAYLOAD_TYPE
    assert list(envelope.verify([standard_key(key.public)], 1)) == [key.public.id]


def test_what_another_implementation_signs_we_verify() -> None:
    signer = CryptoSigner.generate_ed25519()
    raw = bytes.fromhex(signer.public_key.keyval["public"])
    public = PublicKey("theirs", raw)
    signed = Envelope(MANIFEST, PAYLOAD_TYPE, {})
    signature = signed.sign(signer)
    entry = {"keyid": public.id, "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode()}
    envelope = json.dumps({"payloadType": PAYLOAD_TYPE, "signatures": [entry]}, sort_keys=True, separators=(",", ":")).encode()
    assert signers(MANIFEST, envelope, [public]) == {public.id}


def test_a_key_line_reads_back_and_its_name_decides_nothing(key: SigningKey) -> None:
    line = str(key.public)
    assert line.startswith("aot-ed25519:machine-")
    assert PublicKey.parse(line) == key.public
    assert PublicKey("other", key.public.raw).id == key.public.id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aot-ed25519",
        "aot-ed25519:name",
        "aot-ed25519:name:",
        "aot-ed25519::" + "A" * 43 + "=",
        "aot-rsa:name:" + "A" * 43 + "=",
        "aot-ed25519:a b:" + "A" * 43 + "=",
        "aot-ed25519:name:" + "A" * 42,
        "aot-ed25519:name:" + "A" * 44,
        "aot-ed25519:name:" + "A" * 42 + "B=",  # other padding bits: the same bytes, spelled otherwise
        "aot-ed25519:name:" + "*" * 43 + "=",
        "aot-ed25519:name:" + "A" * 43 + "=:more",
        "aot-ed25519:" + "n" * 65 + ":" + "A" * 43 + "=",
    ],
)
def test_a_key_line_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        PublicKey.parse(text)


def test_the_machines_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first = SigningKey.of_machine(tmp_path)
    assert SigningKey.of_machine(tmp_path).public == first.public
    assert machine_key(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["machine.pem"]
    machine_key(tmp_path).chmod(0o640)
    with pytest.raises(RootRefused, match="read by others"):
        SigningKey.of_machine(tmp_path)


def test_a_key_file_that_is_a_link_or_no_key_is_refused(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "link.pem").symlink_to(machine_key(tmp_path))
    with pytest.raises(RootRefused, match="link"):
        SigningKey(tmp_path / "link.pem")
    (tmp_path / "none.pem").write_bytes(b"not a key")
    (tmp_path / "none.pem").chmod(0o600)
    with pytest.raises(Malformed, match="cannot be read"):
        SigningKey(tmp_path / "none.pem")


def test_a_turned_bit_anywhere_in_a_key_file_is_told_or_another_key(tmp_path: Path, key: SigningKey) -> None:
    sound = machine_key(tmp_path).read_bytes()
    for place in range(len(sound)):
        for bit in range(8):
            machine_key(tmp_path).write_bytes(sound[:place] + bytes([sound[place] ^ (1 << bit)]) + sound[place + 1 :])
            with contextlib.suppress(Malformed):
                assert SigningKey.of_machine(tmp_path).public


def test_one_other_byte_of_manifest_or_signature_is_nobodys(key: SigningKey) -> None:
    envelope = key.sign(MANIFEST)
    assert signers(MANIFEST, envelope, [key.public]) == {key.public.id}
    for place in range(len(MANIFEST)):
        changed = bytearray(MANIFEST)
        changed[place] ^= 1
        assert signers(bytes(changed), envelope, [key.public]) == set()
    value = json.loads(envelope)
    signature = bytearray(base64.b64decode(value["signatures"][0]["sig"]))
    for place in range(len(signature)):
        signature[place] ^= 1
        value["signatures"][0]["sig"] = base64.b64encode(signature).decode()
        changed_envelope = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        assert signers(MANIFEST, changed_envelope, [key.public]) == set()
        signature[place] ^= 1


def test_a_signature_under_another_keys_id_is_nobodys(tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey.of_machine(tmp_path / "other")
    envelope = key.sign(MANIFEST).replace(key.public.id.encode(), other.public.id.encode())
    assert claimed(envelope) == [other.public.id]
    assert signers(MANIFEST, envelope, [key.public, other.public]) == set()


def test_merging_keeps_every_signature(tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey.of_machine(tmp_path / "other")
    both = merge(key.sign(MANIFEST), other.sign(MANIFEST))
    assert both == merge(other.sign(MANIFEST), key.sign(MANIFEST))
    assert signers(MANIFEST, both, [key.public, other.public]) == {key.public.id, other.public.id}
    assert merge(None, None) is None
    assert merge(both, None) == merge(None, both) == both


def _entry(**changes: object) -> dict[str, object]:
    return {"keyid": "0" * 64, "sig": base64.b64encode(b"s" * 64).decode(), **changes}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"payloadType": PAYLOAD_TYPE},
        {"payloadType": "text/plain", "signatures": [_entry()]},
        {"payloadType": PAYLOAD_TYPE, "signatures": {}},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry()], "payload": "AA=="},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(), _entry()]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(keyid="0" * 63)]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(keyid="0" * 63 + "G")]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(sig="")]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(sig="AA==")]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(extra=1)]},
        {"payloadType": PAYLOAD_TYPE, "signatures": ["text"]},
        {"payloadType": PAYLOAD_TYPE, "signatures": [_entry(keyid=f"{n:064x}") for n in range(MAX_SIGNATURES + 1)]},
    ],
)
def test_an_envelope_of_another_form_is_refused(value: object) -> None:
    raw = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Malformed):
        claimed(raw)
    with pytest.raises(Malformed):
        claimed(raw + b" ")
