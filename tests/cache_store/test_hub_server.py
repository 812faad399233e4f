"""The test Hub as the real client sees it. What the client makes of a fault is a fact that a store has to know."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.cache_store.hub_server import Does, Fault, Hub

REPO, BIG = "owner/artifacts", "a/b/large.bin"
SMALL, LARGE = b'{"a": 1}\n', bytes(range(256)) * 8192  # a regular file, and 2 MiB that go by LFS


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub: Hub, tmp_path: Path) -> HfApi:
    """With a repo that holds a card, a small file and a large one."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO)
    (tmp_path / "large").write_bytes(LARGE)
    files: dict[str, bytes | Path] = {"README.md": b"# It\n", "a/small.json": SMALL, BIG: tmp_path / "large"}
    api.create_commit(REPO, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="first")
    return api


def commit(api: HfApi, data: bytes = b"2", parent: str | None = None) -> str:
    return str(api.create_commit(REPO, [CommitOperationAdd("new.json", data)], commit_message="next", parent_commit=parent).oid)


def get(hub: Hub, path: str = BIG, headers: dict[str, str] | None = None, timeout: float = 5) -> httpx2.Response:
    """As a store does that goes on with a file: where it is, then from there."""
    found = get_hf_file_metadata(hf_hub_url(REPO, path, endpoint=hub.endpoint), token=hub.token)
    return get_session().get(found.location, headers=headers, timeout=timeout)


def test_a_commit_reads_back_with_its_sizes_and_etags(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    assert Path(api.hf_hub_download(REPO, "a/small.json", cache_dir=tmp_path)).read_bytes() == SMALL
    assert Path(api.hf_hub_download(REPO, BIG, cache_dir=tmp_path)).read_bytes() == LARGE == hub.read(REPO, BIG)
    found = get_hf_file_metadata(hf_hub_url(REPO, BIG, endpoint=hub.endpoint), token=hub.token)
    assert (found.size, found.etag, found.commit_hash) == (len(LARGE), hashlib.sha256(LARGE).hexdigest(), hub.head(REPO))
    assert [(entry.path, getattr(entry, "size", 0)) for entry in api.get_paths_info(REPO, [BIG])] == [(BIG, found.size)]
    assert all(not request.authorized for request in hub.requests if request.cdn)


def test_what_is_there_already_is_neither_uploaded_nor_committed_again(api: HfApi, hub: Hub) -> None:
    head = hub.head(REPO)
    assert api.create_commit(REPO, [CommitOperationAdd(BIG, LARGE)], commit_message="again").oid == hub.head(REPO) == head
    assert [request.method for request in hub.requests].count("PUT") == 1
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)


def test_a_stale_parent_is_refused_and_of_four_at_once_one_wins(api: HfApi, hub: Hub) -> None:
    stale, fresh = hub.head(REPO), hub.write(REPO, "theirs.json", b"1")
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, parent=stale)
    assert hub.head(REPO) == fresh
    with ThreadPoolExecutor(4) as pool:
        races = [pool.submit(commit, api, b"%d" % number, fresh) for number in range(4)]
    assert sorted("412" in str(race.exception()) for race in races) == [False, True, True, True]


def test_a_deleted_file_and_a_branch_that_was_moved_stay_readable_by_sha(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    before = hub.head(REPO)
    api.create_commit(REPO, [CommitOperationDelete("a/b/", is_folder=True)], commit_message="delete")
    with pytest.raises(EntryNotFoundError):
        get(hub)
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file(BIG, REPO)
    deleted = hub.head(REPO)
    hub.rewind(REPO, before)
    assert api.model_info(REPO).sha == before
    assert api.list_repo_files(REPO, revision=deleted) == [".gitattributes", "README.md", "a/small.json"]
    assert Path(api.hf_hub_download(REPO, BIG, revision=before, cache_dir=tmp_path)).read_bytes() == LARGE


def test_a_private_repo_is_not_there_for_others(hub: Hub) -> None:
    HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("owner/private", private=True)
    for token in (False, hub.stranger_token):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.endpoint, token=token).model_info("owner/private")
    assert HfApi(endpoint=hub.endpoint, token=hub.read_token).model_info("owner/private").private
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.endpoint, token="hf_unknown").model_info("owner/private")


def test_others_may_list_a_gated_repo_and_a_read_only_token_may_not_commit(api: HfApi, hub: Hub) -> None:
    hub.create("owner/gated", gated=True)
    stranger = HfApi(endpoint=hub.endpoint, token=hub.stranger_token)
    assert stranger.model_info("owner/gated").gated == "auto"
    with pytest.raises(GatedRepoError, match="403"):
        stranger.hf_hub_download("owner/gated", ".gitattributes")
    with pytest.raises(HfHubHTTPError, match=r"403.*write token"):
        commit(HfApi(endpoint=hub.endpoint, token=hub.read_token))


def test_names_lead_to_commits_and_an_unknown_one_nowhere(api: HfApi, hub: Hub) -> None:
    first = hub.head(REPO)
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev/x")
    refs = {"main": commit(api), "dev/x": first, "v1": first}
    found = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in (*found.branches, *found.tags)} == refs
    assert api.model_info(REPO, revision="dev/x").sha == first
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="0" * 40)


def test_a_listing_comes_in_pages(api: HfApi, hub: Hub) -> None:
    hub.page_size = 2
    paths = [entry.path for entry in api.list_repo_tree(REPO, recursive=True)]
    assert paths == [".gitattributes", "README.md", "a", "a/b", BIG, "a/small.json"]
    assert sum("/tree/main" in request.path for request in hub.requests) == 3
    assert [entry.path for entry in api.list_repo_tree(REPO, "a")] == ["a/b", "a/small.json"]


def test_a_part_of_a_file_is_served_and_the_token_refused_by_the_cdn(api: HfApi, hub: Hub) -> None:
    for asked, expected in {"bytes=100-": LARGE[100:], "bytes=5-9": LARGE[5:10], "bytes=-7": LARGE[-7:]}.items():
        found = get(hub, headers={"Range": asked})
        assert (found.status_code, found.content) == (206, expected)
    assert get(hub, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416
    assert get(hub, "a/small.json", headers={"Range": "bytes=2-"}).content == SMALL[2:]
    assert get(hub, headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400


READS: dict[Does, type[Exception] | int] = {
    **dict.fromkeys((Does.RESET, Does.CUT_RESET), httpx2.ReadError),
    **dict.fromkeys((Does.CLOSE, Does.CUT, Does.LENGTH_LONGER, Does.GARBAGE, Does.HUGE_HEADERS), httpx2.RemoteProtocolError),
    **dict.fromkeys((Does.STALL, Does.STALL_BODY), httpx2.ReadTimeout),
    Does.REDIRECT_DEAD: httpx2.ConnectError,
    Does.REDIRECT_FILE: httpx2.UnsupportedProtocol,
    Does.REDIRECT_LOOP: httpx2.TooManyRedirects,
    Does.UNAVAILABLE: 503,
    Does.TOO_MANY_RETRY_AFTER: 429,
    **dict.fromkeys((Does.LOGIN_PAGE, Does.EMPTY, Does.RANGE_IGNORED), 200),
    **dict.fromkeys((Does.FLIP_BIT, Does.TRUNCATED, Does.EXTRA_BYTES, Does.LENGTH_SHORTER), 206),
    **dict.fromkeys((Does.OTHER_RANGE, Does.RANGE_LIE, Does.GZIP_BOMB), 206),
}


@pytest.mark.parametrize("does", READS)
def test_a_fault_of_a_download_is_an_error_or_other_bytes(does: Does, api: HfApi, hub: Hub) -> None:
    hub.faults.add(Fault("GET", "^/cdn/", does, times=-1))
    expected = READS[does]
    if isinstance(expected, type):
        with pytest.raises(expected):
            get(hub, headers={"Range": "bytes=1000-"}, timeout=0.3)
    else:
        found = get(hub, headers={"Range": "bytes=1000-"})
        assert found.status_code == expected
        assert found.content != LARGE[1000:]


DONE = {Does.UNAVAILABLE: False, Does.RESET: False, Does.DONE_BROKEN: True, Does.DONE_RESET: True}


@pytest.mark.parametrize("does", DONE)
def test_a_commit_that_failed_may_have_been_done(does: Does, api: HfApi, hub: Hub) -> None:
    head = hub.head(REPO)
    hub.faults.add(Fault("POST", "/commit/", does))
    with pytest.raises((HfHubHTTPError, httpx2.ReadError)):
        commit(api)
    assert (hub.head(REPO) != head) == DONE[does]


def test_an_answer_of_the_api_may_be_anything(api: HfApi, hub: Hub) -> None:
    hub.faults.add(*(Fault("GET", "/api/models", does) for does in (Does.BAD_JSON, Does.OTHER_JSON)))
    hub.faults.add(Fault("HEAD", "/resolve/", Does.NO_ETAG), Fault("HEAD", "/resolve/", Does.OTHER_COMMIT))
    for error in (ValueError, TypeError):
        with pytest.raises(error):
            api.model_info(REPO)
    url = hf_hub_url(REPO, BIG, endpoint=hub.endpoint)
    assert get_hf_file_metadata(url, token=hub.token).etag is None
    assert get_hf_file_metadata(url, token=hub.token).commit_hash == "f" * 40


@pytest.mark.parametrize("does", [Does.STALL, Does.STALL_BODY, Does.DRIP, Does.ENDLESS, Does.ENDLESS_CHUNKED])
def test_a_hub_stops_while_it_answers(does: Does, api: HfApi, hub: Hub) -> None:
    hub.faults.add(Fault("GET", "^/api/models", does, rate=10))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.model_info, REPO)
        time.sleep(0.2)
        start = time.monotonic()
        hub.__exit__()
        assert isinstance(asked.exception(timeout=1), httpx2.HTTPError | ValueError)
    assert time.monotonic() - start < 1
