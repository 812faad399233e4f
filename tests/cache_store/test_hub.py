"""HubStore against our own server, through the real huggingface_hub client."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from aot.cache_store import hub_reader, patience
from aot.cache_store.cached import CachedStore
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Busy, CodedError, Corrupt, Denied, Malformed, Missing, RolledBack, StoreFull, Unreachable
from aot.cache_store.hub import HubStore
from aot.cache_store.hub_errors import refusal
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import Ref, read_manifest
from aot.cache_store.transfer import push
from tests.artifacts import bring, small
from tests.cache_store.hub_server import Does, Fault, Hub
from tests.cache_store.store_contract import WritingContract


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def _begin(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.clear()
    hub.requests.clear()
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)


def api(hub: Hub, token: str | bool | None = None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token if token is None else token)


@dataclass
class Repos:
    """Makes repositories, each for one test."""

    hub: Hub
    number: int = 0

    def make(self, **options: bool) -> str:
        self.number += 1
        name = f"acme/artifacts-{self.number}"
        self.hub.create(name, **options)
        return name


@pytest.fixture(scope="module")
def repos(hub: Hub) -> Repos:
    return Repos(hub)


@pytest.fixture
def repo(repos: Repos) -> str:
    return repos.make()


@pytest.fixture
def store(hub: Hub, repo: str) -> HubStore:
    return HubStore(repo, api=api(hub))


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "home")


def put(local: LocalStore, folder: Path, **what: str) -> tuple[Ref, Manifest]:
    """An artifact in the local store, signed."""
    ref, manifest, blobs = small(folder, **what)
    raw = manifest.encode()
    local.commit(ref, raw, blobs, envelope=SigningKey.of_machine(local.root).sign(raw))
    return ref, manifest


class TestHubStore(WritingContract):
    @pytest.fixture
    def store(self, hub: Hub, repo: str) -> HubStore:
        return HubStore(repo, api=api(hub))


def test_a_push_is_one_commit_with_a_card_and_a_pull_three_requests_beside_the_blobs(
    hub: Hub, repo: str, local: LocalStore, tmp_path: Path
) -> None:
    ref, manifest = put(local, tmp_path)
    digest = push(
        ref, source=local, target=HubStore(repo, api=api(hub), card=lambda entries, count: f"{len(entries)} of {count} artifacts")
    )
    commits = [request for request in hub.requests if "/commit/" in request.path]
    assert [request.status for request in commits] == [200]
    assert hub.read(repo, "README.md") == b"1 of 1 artifacts"
    assert hub.read(repo, f"v1/refs/small/{ref.key.hex}") == f"{digest}\n".encode()
    hub.requests.clear()
    store, there = HubStore(repo, api=api(hub)), LocalStore(tmp_path / "there")
    (entry,) = store.entries()
    raw = store.manifest(entry.digest)
    assert bring(Manifest.parse(raw), store, there) == digest
    assert there.envelope(digest) == local.envelope(digest)
    asked = [request for request in hub.requests if "/blobs/" not in request.path and not request.cdn]
    assert len(asked) == 3
    assert read_manifest(there, digest) == manifest


def test_the_token_never_leaves_the_hub(hub: Hub, store: HubStore, local: LocalStore, tmp_path: Path) -> None:
    ref, manifest = put(local, tmp_path)
    push(ref, source=local, target=store)
    bring(manifest, store, LocalStore(tmp_path / "there"))
    assert any(request.cdn for request in hub.requests)
    assert not any(request.authorized for request in hub.requests if request.cdn)


def test_a_download_goes_on_where_a_killed_process_left_it(hub: Hub, store: HubStore, local: LocalStore, tmp_path: Path) -> None:
    ref, manifest = put(local, tmp_path, text=noise(300_000))
    push(ref, source=local, target=store)
    (layer,) = manifest.layers
    there = LocalStore(tmp_path / "there")
    with store.open_blob(layer.digest) as blob:
        (there.root / "v1" / "parts" / layer.digest.hex).write_bytes(blob.read(10_000))
    hub.requests.clear()
    bring(manifest, store, there)
    ranges = {request.range for request in hub.requests if request.cdn}
    assert ranges == {"bytes=10000-"}
    assert list((there.root / "v1" / "parts").iterdir()) == []


def noise(size: int) -> str:
    """Text that does not compress to nothing."""
    import random

    return "".join(random.Random(0).choices("0123456789abcdef", k=size))


# what a file's GET may meet, and be none the worse for: the second attempt is answered well
PASSES = [
    Does.CUT,
    Does.CUT_RESET,
    Does.UNAVAILABLE,
    Does.BROKEN,
    Does.BAD_GATEWAY,
    Does.TIMED_OUT,
    Does.TOO_MANY,
    Does.RESET,
    Does.CLOSE,
    Does.GARBAGE,
    Does.LOGIN_PAGE,
    Does.EMPTY,
    Does.LENGTH_LONGER,
    Does.LENGTH_SHORTER,
    Does.REDIRECT_DEAD,
    Does.REDIRECT_FILE,
    Does.HUGE_HEADERS,
    Does.TRUNCATED,
    Does.EXTRA_BYTES,
    Does.NOT_FOUND,
    Does.RANGE_REFUSED,
    Does.OTHER_RANGE,
    Does.RANGE_IGNORED,
    Does.RANGE_LIE,
    Does.NO_ETAG,
    Does.OTHER_ETAG,
    Does.OTHER_SIZE,
    Does.NO_COMMIT,
]


@pytest.mark.parametrize("does", PASSES)
@pytest.mark.parametrize("path", ["^/cdn/", "/resolve/.*/blobs/", "/resolve/.*/manifests/", "/resolve/.*/index.json"])
def test_a_fault_that_passes_costs_nothing_but_time(hub: Hub, repo: str, local: LocalStore, tmp_path: Path, does: Does, path: str) -> None:
    ref, manifest = put(local, tmp_path, text=noise(100_000))
    digest = push(ref, source=local, target=HubStore(repo, api=api(hub)))
    hub.faults.add(Fault("GET", path, does))
    store, there = HubStore(repo, api=api(hub)), LocalStore(tmp_path / "there")
    (entry,) = store.entries()
    assert Digest.of(store.manifest(entry.digest)) == digest
    try:
        assert bring(manifest, store, there) == digest
    except Corrupt:  # bytes added to a blob by an answer that says how long it is: told, and the next pull is sound
        assert list(there.refs()) == []
        assert bring(manifest, store, there) == digest
    assert read_manifest(there, digest) == manifest


LASTING = {
    Does.FLIP_BIT: (Corrupt,), Does.CUT: (Unreachable,), Does.UNAVAILABLE: (Unreachable,), Does.RESET: (Unreachable,),
    Does.LOGIN_PAGE: (Unreachable,), Does.ENDLESS: (Unreachable, Corrupt), Does.ENDLESS_CHUNKED: (Unreachable, Corrupt),
    Does.GZIP_BOMB: (Unreachable, Corrupt), Does.TRUNCATED: (Unreachable,), Does.REDIRECT_LOOP: (Unreachable,),
    Does.REDIRECT_FILE: (Unreachable,), Does.UNAUTHORIZED: (Denied, Missing), Does.FORBIDDEN: (Denied,), Does.ENTRY_GONE: (Missing,),
    Does.REPO_GONE: (Missing,), Does.TOO_MANY: (Unreachable,),
}  # fmt: skip


@pytest.mark.parametrize("does", LASTING)
def test_a_fault_that_stays_is_a_typed_error_and_leaves_nothing_behind(
    hub: Hub, repo: str, local: LocalStore, tmp_path: Path, does: Does
) -> None:
    ref, manifest = put(local, tmp_path, text=noise(100_000))
    push(ref, source=local, target=HubStore(repo, api=api(hub)))
    hub.faults.add(Fault("GET", "/cdn/|/resolve/.*/blobs/" if does is not Does.FLIP_BIT else "/cdn/", does, times=-1))
    store, there = HubStore(repo, api=api(hub)), LocalStore(tmp_path / "there")
    with pytest.raises(LASTING[does]):
        bring(manifest, store, there)
    assert list(there.refs()) == []
    assert there.blob_path(manifest.layers[0].digest) is None
    hub.faults.clear()
    bring(manifest, HubStore(repo, api=api(hub)), there)


@pytest.mark.parametrize("path", ["/cdn/", "/resolve/.*/index.json"])
@pytest.mark.parametrize("does", [Does.STALL, Does.STALL_BODY, Does.DRIP])
def test_a_server_that_stalls_or_drips_is_given_up_by_the_deadline(
    hub: Hub, repo: str, local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: Does, path: str
) -> None:
    ref, manifest = put(local, tmp_path, text=noise(100_000))
    push(ref, source=local, target=HubStore(repo, api=api(hub)))
    monkeypatch.setattr(hub_reader, "TIMEOUT", 0.3)
    monkeypatch.setattr(hub_reader, "ASK_SECONDS", 1.0)
    hub.faults.add(Fault("GET", path, does, times=-1, rate=50))
    store = HubStore(repo, api=api(hub))
    with pytest.raises(Unreachable):
        list(store.entries())
        bring(manifest, store, LocalStore(tmp_path / "there"), deadline=patience.Deadline(1.0, "this"))


def test_a_private_gated_or_absent_repository_is_told_with_the_remedy(hub: Hub, repos: Repos) -> None:
    private, gated = repos.make(private=True), repos.make(gated=True)
    for name, token, kind, says in [
        (private, False, Missing, "private"),
        (private, hub.stranger_token, Missing, "private"),
        (private, "hf_nobodys", (Denied, Missing), None),
        (gated, False, Denied, "gated"),
        (gated, hub.stranger_token, Denied, "gated"),
        ("acme/none", None, Missing, "no such repository"),
    ]:
        with pytest.raises(kind, match=says) as caught:
            list(HubStore(name, api=api(hub, token)).entries())
        assert "HF_TOKEN" in caught.value.remedy
    with pytest.raises(Missing, match="no such revision"):
        list(HubStore(private, "v9", api=api(hub)).entries())
    with pytest.raises(Malformed):
        list(HubStore("a/b/c/d", api=api(hub)).entries())


def test_a_token_that_may_only_read_pushes_nothing(hub: Hub, repo: str, local: LocalStore, tmp_path: Path) -> None:
    ref, _ = put(local, tmp_path)
    with pytest.raises(Denied, match=r".") as caught:
        push(ref, source=local, target=HubStore(repo, api=api(hub, hub.read_token)))
    assert "write" in caught.value.remedy
    assert list(HubStore(repo, api=api(hub)).refs()) == []


# (method, path, what): every request of a push, and what may become of it
REQUESTS = [("POST", "/commit/"), ("POST", "/preupload/"), ("POST", "objects/batch"), ("PUT", "^/upload/"), ("GET", "^/api/models")]
PUSHES = [
    (method, path, does) for method, path in REQUESTS for does in (Does.UNAVAILABLE, Does.BROKEN, Does.RESET, Does.TOO_MANY, Does.CLOSE)
] + [
    ("POST", "/commit/", does) for does in (Does.DONE_BROKEN, Does.DONE_UNAVAILABLE, Does.DONE_RESET, Does.BUSY, Does.STALE, Does.BAD_JSON)
]


@pytest.mark.parametrize("met", PUSHES)
def test_a_push_lands_once_whatever_becomes_of_one_of_its_requests(
    hub: Hub, repo: str, local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, met: tuple[str, str, Does]
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    ref, manifest = put(local, tmp_path)
    hub.faults.add(Fault(*met))
    digest = push(ref, source=local, target=HubStore(repo, api=api(hub)))
    store = HubStore(repo, api=api(hub))
    assert list(store.refs()) == [(ref, digest)]
    assert store.state() is not None
    assert store.state()[0] == 1  # type: ignore[index]
    bring(manifest, store, LocalStore(tmp_path / "there"))


@pytest.mark.parametrize("path", ["/preupload/", "objects/batch", "^/upload/", "/commit/"])
def test_a_push_that_fails_for_good_leaves_nothing_to_be_seen(
    hub: Hub, repo: str, local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    ref, _ = put(local, tmp_path)
    head = hub.head(repo)
    hub.faults.add(Fault("POST|PUT", path, Does.UNAVAILABLE, times=-1))
    with pytest.raises(Busy, match="nothing of it is visible"):
        push(ref, source=local, target=HubStore(repo, api=api(hub)))
    hub.faults.clear()
    assert hub.head(repo) == head
    push(ref, source=local, target=HubStore(repo, api=api(hub)))


def test_two_pushers_at_once_both_land(hub: Hub, repo: str, tmp_path: Path) -> None:
    failed: list[CodedError] = []

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        local = LocalStore(folder / "home")
        try:
            for each in range(3):
                ref, _ = put(local, folder, key=f"{number}-{each}", text=f"{number}-{each}")
                push(ref, source=local, target=HubStore(repo, api=api(hub)))
        except CodedError as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store = HubStore(repo, api=api(hub))
    assert len(list(store.refs())) == 6
    assert store.state()[0] == 6  # type: ignore[index]


def test_a_moved_branch_is_told_and_a_pinned_commit_does_not_move(hub: Hub, repo: str, local: LocalStore, tmp_path: Path) -> None:
    first, _ = put(local, tmp_path, key="one")
    push(first, source=local, target=HubStore(repo, api=api(hub)))
    old = hub.head(repo)
    second, _ = put(local, tmp_path, key="two")
    push(second, source=local, target=HubStore(repo, api=api(hub)))
    there = LocalStore(tmp_path / "there")
    assert len(list(CachedStore(HubStore(repo, api=api(hub)), there).entries())) == 2
    hub.rewind(repo, old)
    with pytest.raises(RolledBack, match=r"write 1 .* showed 2"):
        list(CachedStore(HubStore(repo, api=api(hub)), there).entries())
    pinned = CachedStore(HubStore(repo, old, api=api(hub)), there)
    assert [entry.ref for entry in pinned.entries()] == [first]
    with pytest.raises(Malformed, match="cannot be written"):
        push(second, source=local, target=HubStore(repo, old, api=api(hub)))


def test_what_is_read_is_one_state_although_somebody_writes_meanwhile(hub: Hub, repo: str, local: LocalStore, tmp_path: Path) -> None:
    ref, _ = put(local, tmp_path)
    digest = push(ref, source=local, target=HubStore(repo, api=api(hub)))
    store = HubStore(repo, api=api(hub))
    assert len(list(store.refs())) == 1
    hub.write(repo, f"v1/manifests/{digest.hex}", None)
    assert Digest.of(store.manifest(digest)) == digest


def test_offline_mode_is_honoured(hub: Hub, store: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        list(store.refs())
    assert hub.requests == []


def test_a_full_quota_is_told_as_no_space() -> None:
    said = refusal("hf://acme/x", 403, {"X-Error-Message": "Private repository storage limit reached"})
    assert isinstance(said, StoreFull)
    assert "storage limit" in said.message
