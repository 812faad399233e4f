"""What every store must do. A store's test module subclasses one of these with its own fixtures.

`ReadingContract` asks for `store` and `filled`, the store that what is to be read is written to: itself, or what it reads through to.
"""

from pathlib import Path

import pytest

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Missing
from aot.cache_store.layer import materialise, verify
from aot.cache_store.signing import SigningKey, signers
from aot.cache_store.store import Entry, MendableStore, PrunableStore, Ref, WritableStore, read_manifest
from tests.artifacts import small


class ReadingContract:
    """One suite; passing it makes a class a MendableStore in deed."""

    @pytest.fixture
    def filled(self, store: WritableStore) -> WritableStore:
        return store

    def test_it_has_every_method_for_reading(self, store: MendableStore) -> None:
        assert isinstance(store, MendableStore)

    def test_an_empty_store_has_no_refs_and_resolves_nothing(self, store: MendableStore) -> None:
        assert list(store.refs()) == []
        assert list(store.entries()) == []
        assert store.resolve(Ref("small", Digest.of(b"x"))) is None

    def test_what_was_committed_is_found_and_reads_back(self, store: MendableStore, filled: WritableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        digest = filled.commit(ref, manifest.encode(), blobs)
        assert digest == Digest.of(manifest.encode())
        assert store.resolve(ref) == digest
        assert list(store.refs()) == [(ref, digest)]
        assert (
            list(store.entries()) == list(store.entries(about=["x"], within={"part": "x"}, newest=1)) == [Entry.of(ref, digest, manifest)]
        )
        assert read_manifest(store, digest) == manifest
        (layer,) = manifest.layers
        with store.open_blob(layer.digest) as blob:
            verify(layer, blob)
            files = materialise(layer, files=manifest.files_of(layer), blob=blob, into=tmp_path / "out")
        assert [path.read_bytes() for path in files] == [b"hello", b"\0" * 50]

    def test_a_blob_can_be_read_from_anywhere(self, store: MendableStore, filled: WritableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        read_manifest(store, filled.commit(ref, manifest.encode(), blobs))
        ((digest, path),) = blobs.items()
        whole = path.read_bytes()
        with store.open_blob(digest) as blob:
            blob.seek(7)
            assert blob.read(5) == whole[7:12]
            assert blob.read() == whole[12:]
            blob.seek(0)
            assert blob.read(3) == whole[:3]

    def test_absent_bytes_are_missing_not_corrupt(self, store: MendableStore) -> None:
        with pytest.raises(Missing):
            store.manifest(Digest.of(b"none"))
        with pytest.raises(Missing), store.open_blob(Digest.of(b"none")) as blob:
            blob.read(1)
        assert store.envelope(Digest.of(b"none")) is None

    def test_signatures_come_with_the_manifest_and_its_origin_is_told(
        self, store: MendableStore, filled: WritableStore, tmp_path: Path
    ) -> None:
        ref, manifest, blobs = small(tmp_path)
        raw, key = manifest.encode(), SigningKey.of_machine(tmp_path)
        digest = filled.commit(ref, raw, blobs, envelope=key.sign(raw))
        assert signers(raw, store.envelope(digest), [key.public]) == {key.public.id}
        assert store.location in store.origins(digest)


class WritingContract(ReadingContract):
    """What makes a class a PrunableStore in deed."""

    def test_it_has_every_method(self, store: PrunableStore) -> None:
        assert isinstance(store, PrunableStore)

    def test_signatures_of_several_are_kept(self, store: PrunableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        raw, keys = manifest.encode(), [SigningKey.of_machine(tmp_path / name) for name in ("one", "two")]
        for key in keys:
            digest = store.commit(ref, raw, blobs, envelope=key.sign(raw))
        store.commit(ref, raw, {})
        assert len(signers(raw, store.envelope(digest), [key.public for key in keys])) == 2

    def test_committing_again_changes_nothing(self, store: PrunableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        first = store.commit(ref, manifest.encode(), blobs)
        assert store.commit(ref, manifest.encode(), {}) == first
        assert len(list(store.refs())) == 1

    def test_a_ref_moves_to_a_newer_manifest(self, store: PrunableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        store.commit(ref, manifest.encode(), blobs)
        _, newer, blobs = small(tmp_path, text="newer")
        assert store.resolve(ref) != store.commit(ref, newer.encode(), blobs)
        assert store.resolve(ref) == Digest.of(newer.encode())

    def test_a_manifest_whose_blob_is_nowhere_is_refused(self, store: PrunableStore, tmp_path: Path) -> None:
        ref, manifest, _ = small(tmp_path)
        with pytest.raises(Missing):
            store.commit(ref, manifest.encode(), {})
        assert store.resolve(ref) is None

    def test_a_file_that_is_not_its_digest_is_refused(self, store: PrunableStore, tmp_path: Path) -> None:
        ref, manifest, blobs = small(tmp_path)
        for path in blobs.values():
            path.write_bytes(b"something else")
        with pytest.raises(Corrupt):
            store.commit(ref, manifest.encode(), blobs)
        assert store.resolve(ref) is None

    @pytest.mark.parametrize("which", ["blob", "manifest", "ref"])
    def test_quarantine_takes_what_is_bad_and_every_ref_to_it_out_of_use(self, store: PrunableStore, tmp_path: Path, which: str) -> None:
        ref, manifest, blobs = small(tmp_path)
        digest = store.commit(ref, manifest.encode(), blobs)
        culprit = {"blob": str(manifest.layers[0].digest), "manifest": str(digest), "ref": str(ref)}[which]
        store.quarantine(culprit)
        assert store.resolve(ref) is None
        store.commit(ref, manifest.encode(), blobs)
        assert store.resolve(ref) == digest

    def test_quarantine_of_what_is_not_there_is_fine(self, store: PrunableStore) -> None:
        store.quarantine(str(Digest.of(b"none")))

    def test_collect_frees_what_no_ref_leads_to_and_nothing_else(self, store: PrunableStore, tmp_path: Path) -> None:
        kept = small(tmp_path, text="kept", key="kept")
        store.commit(kept[0], kept[1].encode(), kept[2])
        ref, manifest, blobs = small(tmp_path)
        store.commit(ref, manifest.encode(), blobs)
        assert store.collect() == 0
        store.remove(ref)
        store.remove(ref)
        assert store.collect() == len(manifest.encode()) + manifest.size
        with pytest.raises(Missing):
            store.manifest(Digest.of(manifest.encode()))
        assert read_manifest(store, Digest.of(kept[1].encode())) == kept[1]

    def test_a_layer_that_two_artifacts_share_outlives_one_of_them(self, store: PrunableStore, tmp_path: Path) -> None:
        one, two = small(tmp_path, key="one"), small(tmp_path, key="two")
        for ref, manifest, blobs in (one, two):
            store.commit(ref, manifest.encode(), blobs)
        store.remove(one[0])
        store.collect()
        with store.open_blob(two[1].layers[0].digest) as blob:
            verify(two[1].layers[0], blob)
