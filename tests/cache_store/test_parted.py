"""A list of artifacts that is too long for one file, over the Hub's own protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from huggingface_hub import HfApi

from aot.cache_store import parted
from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, RolledBack
from aot.cache_store.history import check_history
from aot.cache_store.hub import HubStore
from aot.cache_store.hub_list import LIST
from aot.cache_store.listed import Listed
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.parted import CATALOGUE, Catalogue
from aot.cache_store.store import Ref, names_in
from tests.artifacts import packed
from tests.cache_store.hub_server import Hub

REPO = "acme/many"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.create(REPO)
        yield hub


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of more than some ten artifacts is cut."""
    monkeypatch.setattr(parted, "WHOLE", 4096)


def _store(hub: Hub) -> HubStore:
    return HubStore(REPO, api=HfApi(endpoint=hub.endpoint, token=hub.token), card=lambda entries, count: f"{len(entries)} of {count}")


def _put(store: HubStore, folder: Path, name: str, number: int, *, text: str = "x") -> Ref:
    layer, entries, blob = packed(folder, {"a.bin": text.encode()})
    key = {"recipe": name, "part": str(number), "component/unet/fingerprint": str(Digest.of(f"{name}{number % 2}".encode()))}
    created = f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"
    manifest = Manifest(name=name, key=key, created=created, producer={}, layers=(layer,), files=tuple(entries))
    ref = Ref.of(manifest)
    store.commit(ref, manifest.encode(), {layer.digest: blob})
    return ref


def _fill(hub: Hub, folder: Path, count: int = 24) -> list[Ref]:
    store = _store(hub)
    return [_put(store, folder, f"model-{number % 3}", number) for number in range(count)]


def _gets(hub: Hub) -> list[str]:
    return [request.path.rpartition("/v1/")[2] for request in hub.requests if "/resolve/" in request.path and not request.cdn]


@pytest.mark.usefixtures("short")
def test_a_long_list_is_cut_by_name_and_a_name_is_asked_for_alone(hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    files = hub.files(REPO)
    assert {f"v1/lists/model-{number}" for number in range(3)} <= {*files}
    assert CATALOGUE in files
    store = _store(hub)
    assert {entry.ref for entry in store.entries()} == {*refs} == {ref for ref, _ in store.refs()}
    assert names_in(store) == ["model-0", "model-1", "model-2"]
    hub.requests.clear()
    store = _store(hub)
    mine = [ref for ref in refs if ref.name == "model-1"]
    assert [entry.ref for entry in store.entries(within={"recipe": "model-1"})] == sorted(mine)
    assert all(store.resolve(ref) for ref in mine)
    assert _gets(hub) == ["index.json", "lists.json", "lists/model-1"]


@pytest.mark.usefixtures("short")
def test_a_process_that_looks_for_fingerprints_reads_the_parts_that_may_have_them(hub: Hub, tmp_path: Path) -> None:
    _fill(hub, tmp_path)
    hub.requests.clear()
    wanted = str(Digest.of(b"model-20"))
    found = [entry for entry in _store(hub).entries(about=[wanted]) if wanted in entry.key.values()]
    assert {entry.ref.name for entry in found} == {"model-2"}
    assert _gets(hub) == ["index.json", "lists.json", "lists/model-2"]
    assert not [entry for entry in _store(hub).entries(about=[str(Digest.of(b"nobody"))]) if "nobody" in entry.key.values()]


@pytest.mark.usefixtures("short")
def test_a_client_that_knows_of_no_parts_reads_the_newest_and_what_it_writes_is_not_lost(hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    old = Listed.parse(hub.read(REPO, LIST), where="")  # what such a client reads
    assert {entry.ref for entry in old.entries} < {*refs}
    assert refs[-1] in {entry.ref for entry in old.entries}
    added = next(entry for entry in old.entries if entry.ref == refs[-1])
    theirs = Ref("model-9", added.ref.key)
    written = sorted([*old.entries, replace(added, ref=theirs)], key=lambda one: one.ref)
    hub.write(REPO, LIST, Listed(tuple(written), old.serial + 1).encode())
    assert {entry.ref for entry in _store(hub).entries()} == {*refs, theirs}
    ours = _put(_store(hub), tmp_path, "model-0", 99)
    catalogue = Catalogue.parse(hub.read(REPO, CATALOGUE), where="")
    assert (catalogue.count, catalogue.serial) == (len(refs) + 2, old.serial + 2)
    assert _store(hub).resolve(theirs) == added.digest
    assert _store(hub).resolve(ours) is not None
    assert hub.read(REPO, "README.md").decode().endswith(f" of {len(refs) + 2}")


@pytest.mark.usefixtures("short")
def test_what_is_removed_or_replaced_is_so_in_its_part(hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    _store(hub).remove(refs[0])
    again = _put(_store(hub), tmp_path, "model-1", 1, text="other")
    assert again == refs[1]
    found = {entry.ref: entry.digest for entry in _store(hub).entries()}
    assert {*found} == {*refs[1:]}
    assert found[again] == _store(hub).resolve(again)
    assert json.loads(hub.read(REPO, CATALOGUE))["parts"]["model-0"]["count"] == 7


@pytest.mark.usefixtures("short")
def test_two_writers_at_once_both_land(hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(4) as pool:
        more = list(pool.map(lambda number: _put(_store(hub), folders[number], f"model-{number % 2}", 100 + number), range(4)))
    assert {entry.ref for entry in _store(hub).entries()} == {*refs, *more}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("path", [CATALOGUE, "v1/lists/model-0"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 100])
def test_a_damaged_part_or_catalogue_is_told_and_listing_anew_mends_it(path: str, damage: bytes, hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    hub.write(REPO, path, damage)
    with pytest.raises(Corrupt, match="cannot be read") as raised:
        list(_store(hub).entries())
    assert "aot fsck" in raised.value.remedy
    _store(hub).list_anew()
    assert {entry.ref for entry in _store(hub).entries()} == {*refs}


def test_a_list_that_was_cut_stays_so_whatever_is_removed_from_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that took it for whole would take what it does not see for garbage."""
    with monkeypatch.context() as patch:
        patch.setattr(parted, "WHOLE", 4096)
        refs = _fill(hub, tmp_path)
    for ref in refs[-11:]:  # more than the one file shows
        _store(hub).remove(ref)
    left = {*refs[:-11]}
    assert {entry.ref for entry in _store(hub).entries()} == left
    _store(hub).collect()
    assert all(_store(hub).manifest(digest) for _, digest in _store(hub).refs())
    _store(hub).list_anew()
    _put(_store(hub), tmp_path, "model-7", 1)
    assert {entry.ref for entry in _store(hub).entries() if entry.ref.name != "model-7"} == left
    for ref, _ in list(_store(hub).refs()):
        _store(hub).remove(ref)
    assert list(_store(hub).entries()) == []


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../../../../../../api/whoami-v2", "is not allowed"),
        ("\x1b[31mred", "is not allowed"),
        ("model-9", "other entries than its catalogue says"),  # another's part under its own name
    ],
)
def test_a_part_by_a_name_that_is_none_or_not_its_own_is_refused(name: str, what: str, hub: Hub, tmp_path: Path) -> None:
    _fill(hub, tmp_path)
    catalogue = json.loads(hub.read(REPO, CATALOGUE))
    catalogue["parts"][name] = catalogue["parts"].pop("model-0")
    if name == "model-9":
        hub.write(REPO, "v1/lists/model-9", hub.read(REPO, "v1/lists/model-0"))
    hub.write(REPO, CATALOGUE, encode(catalogue))
    hub.requests.clear()
    with pytest.raises(Corrupt, match=what):
        list(_store(hub).entries())
    assert not [request for request in hub.requests if "whoami" in request.path]


@pytest.mark.usefixtures("short")
def test_a_part_that_grows_without_end_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(hub, tmp_path)
    bomb = zstandard.ZstdCompressor().compress(b"[" + b" " * (64 << 20))  # 6 KB that say how much they are
    catalogue = json.loads(hub.read(REPO, CATALOGUE))
    catalogue["parts"]["model-0"]["digest"] = str(Digest.of(bomb))
    hub.write(REPO, "v1/lists/model-0", bomb)
    hub.write(REPO, CATALOGUE, encode(catalogue))
    monkeypatch.setattr("aot.cache_store.hub_list.MAX_UNPACKED", 1 << 20)
    with pytest.raises(Corrupt, match="take more than"):
        list(_store(hub).entries())


@pytest.mark.usefixtures("short")
def test_an_older_catalogue_under_a_number_that_was_seen_is_a_roll_back(hub: Hub, tmp_path: Path) -> None:
    refs = _fill(hub, tmp_path)
    local = LocalStore(tmp_path / "local")
    before = hub.read(REPO, CATALOGUE)
    _store(hub).remove(refs[3])
    check_history(_store(hub), local)
    hub.write(REPO, CATALOGUE, before)
    with pytest.raises(RolledBack):
        check_history(_store(hub), local)
