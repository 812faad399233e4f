import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt
from aot.cache_store.layer import materialise, verify, verifying
from aot.cache_store.manifest import FileEntry, Layer, Manifest
from aot.cache_store.memory import MemoryStore
from aot.cache_store.store import read_manifest
from tests.artifacts import packed, small


def test_packing_is_deterministic_whatever_the_files_times_and_order(tmp_path: Path) -> None:
    files = {"b/two.bin": bytes(range(256)) * 40, "a.txt": b"", "b/one": b"1"}
    for name, order in (("x", list(files)), ("y", list(reversed(files)))):
        (tmp_path / name).mkdir()
        packed(tmp_path / name, {path: files[path] for path in order})
    assert (tmp_path / "x" / "graph.layer").read_bytes() == (tmp_path / "y" / "graph.layer").read_bytes()


def _opens(store: MemoryStore, digest: Digest, into: Path) -> None:
    """All that stands between bytes and their use."""
    manifest = read_manifest(store, digest)
    for layer in manifest.layers:
        with store.open_blob(layer.digest) as blob:
            verify(layer, blob)
            materialise(layer, files=manifest.files_of(layer), blob=blob, into=into)


def test_flipping_any_single_byte_of_manifest_or_layer_is_detected(tmp_path: Path) -> None:
    ref, manifest, blobs = small(tmp_path)
    store = MemoryStore()
    digest = store.commit(ref, manifest.encode(), blobs)
    _opens(store, digest, tmp_path / "out")
    for kept in (store.manifests, store.blobs):
        ((name, good),) = list(kept.items())
        for position in range(len(good)):
            for flip in (1, 0x80, 0xFF):
                kept[name] = good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :]
                with pytest.raises(Corrupt):
                    _opens(store, digest, tmp_path / "out")
        for length in range(len(good)):
            kept[name] = good[:length]
            with pytest.raises(Corrupt):
                _opens(store, digest, tmp_path / "out")
        kept[name] = good + b"x"
        with pytest.raises(Corrupt):
            _opens(store, digest, tmp_path / "out")
        kept[name] = good


def test_files_are_verified_as_they_are_written_even_if_the_blob_changed_since(tmp_path: Path) -> None:
    layer, entries, blob = packed(tmp_path, {"a": b"some bytes", "b": b"others"})
    good = blob.read_bytes()
    for position in range(len(good)):
        changed = io.BytesIO(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            found = materialise(layer, files=entries, blob=changed, into=tmp_path / "out")
        except Corrupt:
            continue
        # a frame has bits that carry nothing: the bytes that came out are the ones that were promised
        assert [path.read_bytes() for path in found] == [b"some bytes", b"others"]


def test_a_bomb_is_cut_off_at_the_promised_size(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    entry = FileEntry(path="x", size=10, digest=Digest.of(b"\0" * 10), layer="g", offset=0, length=len(frame))
    layer = Layer(id="g", kind="graph", size=len(frame), digest=Digest.of(frame))
    with pytest.raises(Corrupt):
        materialise(layer, files=[entry], blob=io.BytesIO(frame), into=tmp_path)
    assert not (tmp_path / "x").exists()


def test_a_second_frame_behind_the_promised_one_is_refused(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(b"ok")
    both = frame + zstandard.ZstdCompressor().compress(b"more")
    entry = FileEntry(path="x", size=2, digest=Digest.of(b"ok"), layer="g", offset=0, length=len(both))
    layer = Layer(id="g", kind="graph", size=len(both), digest=Digest.of(both))
    with pytest.raises(Corrupt):
        materialise(layer, files=[entry], blob=io.BytesIO(both), into=tmp_path)


def test_a_link_in_the_way_is_replaced_not_written_through(tmp_path: Path) -> None:
    layer, entries, blob = packed(tmp_path, {"a": b"bytes"})
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("safe")
    (tmp_path / "out" / "a").symlink_to(tmp_path / "victim")
    with blob.open("rb") as stream:
        materialise(layer, files=entries, blob=stream, into=tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "safe"
    assert (tmp_path / "out" / "a").read_bytes() == b"bytes"


def test_the_manifest_round_trips(tmp_path: Path) -> None:
    _, manifest, _ = small(tmp_path)
    assert Manifest.parse(manifest.encode()) == manifest


def test_files_that_are_equal_are_unpacked_side_by_side_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    files = {f"{number:02}.so": bytes(2 << 20) for number in range(12)}
    layer, entries, packed_at = packed(tmp_path, files)
    with packed_at.open("rb") as blob:
        for attempt in range(5):
            paths = materialise(layer, files=entries, blob=blob, into=tmp_path / str(attempt))
            assert {path.name: path.read_bytes() for path in paths} == files
            assert sorted(path.name for path in (tmp_path / str(attempt)).iterdir()) == sorted(files)
        entries[7] = replace(entries[7], digest=Digest.of(b"another"))
        with pytest.raises(Corrupt, match=r"07\.so"):
            materialise(layer, files=entries, blob=blob, into=tmp_path / "damaged")
    assert not list((tmp_path / "damaged").glob(".*"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_layer_is_verified_beside_what_is_unpacked_and_nothing_is_used_before_its_verdict(tmp_path: Path, on_disk: bool) -> None:
    layer, entries, packed_at = packed(tmp_path, {f"{number}.so": os.urandom(1 << 20) for number in range(6)})
    good = packed_at.read_bytes()

    def unpacked(data: bytes) -> tuple[int, bool]:
        """How many files came out, and whether the verdict was a good one."""
        packed_at.write_bytes(data)
        found: list[Path] = []
        try:
            with packed_at.open("rb") as file, verifying(layer, file if on_disk else io.BytesIO(data)) as verified:
                found = materialise(layer, files=entries, blob=file, into=tmp_path / "out")
                verified()
        except Corrupt as error:
            assert "layer graph: sha256 mismatch" in str(error)
            return len(found), False
        return len(found), True

    assert unpacked(good) == (6, True)
    # the layer is longer; a file is damaged; the bit of a frame's descriptor that carries nothing is set
    nothing = bytearray(good)
    nothing[4] |= 0x10
    for spoilt, came in ((good + b"x", 6), (good[:-1], 0), (good[:100_000] + b"xxxx" + good[100_004:], 0), (bytes(nothing), 6)):
        assert unpacked(spoilt) == (came if on_disk else 0, False)
