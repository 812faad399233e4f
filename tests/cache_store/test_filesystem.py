"""FilesystemStore over memory, a folder, and a real S3 server."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Denied, Malformed, Missing, Unreachable
from aot.cache_store.filesystem import FilesystemStore
from aot.cache_store.local import LocalStore
from aot.cache_store.location import open_cached, open_store
from aot.cache_store.store import Ref, read_manifest
from aot.cache_store.transfer import push
from tests.artifacts import bring, small
from tests.cache_store.store_contract import WritingContract


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """moto's server: the S3 protocol over HTTP, spoken by the real client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="artifacts")
        yield server
    server.stop()


class TestMemory(WritingContract):
    @pytest.fixture
    def store(self) -> FilesystemStore:
        return FilesystemStore(f"memory://{uuid.uuid4().hex}/artifacts")


class TestFolder(WritingContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FilesystemStore:
        return FilesystemStore(f"file://{tmp_path}/share")


class TestS3(WritingContract):
    @pytest.fixture
    def store(self, s3: Any) -> FilesystemStore:
        return FilesystemStore(f"s3://artifacts/{uuid.uuid4().hex}")


def test_an_artifact_travels_by_s3_from_one_store_to_another(s3: Any, tmp_path: Path) -> None:
    here, there = LocalStore(tmp_path / "here"), LocalStore(tmp_path / "there")
    ref, manifest, blobs = small(tmp_path, text="x" * 100_000)
    digest = here.commit(ref, manifest.encode(), blobs)
    bucket = open_store("s3://artifacts/travel")
    assert push(ref, source=here, target=bucket) == digest
    assert bring(manifest, bucket, there) == digest
    assert read_manifest(there, digest) == manifest
    assert there.origins(digest) == {"s3://artifacts/travel"}


def test_a_store_folder_that_was_copied_is_a_store(tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    digest = LocalStore(tmp_path / "home").commit(ref, manifest.encode(), blobs)
    assert list(FilesystemStore(f"file://{tmp_path}/home").refs()) == [(ref, digest)]


def test_what_cannot_be_opened_is_named(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Malformed, match="nosuch"):
        FilesystemStore("nosuch://x")
    with pytest.raises(Missing, match="bucket"):
        FilesystemStore("s3://no-such-bucket-anywhere").commit(*_small(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Unreachable):
        list(FilesystemStore("s3://artifacts/other").refs())


def test_what_may_not_be_written_is_denied_and_nothing_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemStore(f"file://{tmp_path}/share")

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only share")

    monkeypatch.setattr(store._fs, "open", deny)
    with pytest.raises(Denied, match="read-only"):
        store.commit(*_small(tmp_path))
    monkeypatch.undo()
    assert list(store.refs()) == []


def _small(folder: Path) -> tuple[Ref, bytes, dict[Digest, Path]]:
    ref, manifest, blobs = small(folder)
    return ref, manifest.encode(), blobs


def test_a_path_is_a_store_of_ones_own_and_a_url_is_read_through(tmp_path: Path) -> None:
    assert isinstance(open_cached(str(tmp_path / "home"), tmp_path / "root"), LocalStore)
    assert open_cached(f"file://{tmp_path}/share", tmp_path / "root").location == f"file://{tmp_path}/share"
