import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed
from aot.cache_store.manifest import Manifest, check_path
from aot.cache_store.store import Ref
from tests.artifacts import small


def test_digest_and_ref_text_forms_invert() -> None:
    digest = Digest.of(b"x")
    assert Digest.parse(str(digest)) == digest
    assert Ref.parse(str(Ref("pixart-alpha", digest))) == Ref("pixart-alpha", digest)


@pytest.mark.parametrize("text", ["", "sha256:", "md5:" + "0" * 64, "sha256:" + "0" * 63, "sha256:" + "G" * 64, "sha256:" + "A" * 64])
def test_other_digests_are_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        Digest.parse(text)


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a": 1}', b'{"b":1,"a":2}', b"{", b"", b'{"a":1}\n', b"[" * 20 + b"]" * 20,
     b"[" * 100_000 + b"]" * 100_000, b'{"a":"\xc3\xa9"}', b"\xff", b'{"a":1e999}', b"1" * 5000],
)  # fmt: skip
def test_anything_but_canonical_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode(raw, what="test")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_round_trips(value: Any) -> None:
    assert encode(decode(encode(value), what="test")) == encode(value)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/..", "a\\b", "a b", "a\0", "é", "a" * 241, "~/a", "C:", "a:b", "a\n",
     "-/../x", "%2e%2e/a", "a/./b", "…"],
)  # fmt: skip
def test_hostile_paths_are_malformed(path: str) -> None:
    with pytest.raises(Malformed):
        check_path(path)


@given(st.text(max_size=30))
@settings(max_examples=500)
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except Malformed:
        return
    root = Path("/root-of-all")
    assert root in (root / path).parents
    assert ".." not in Path(path).parts


def _broken(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A manifest's document with one thing wrong, by what it is."""
    first, second = document["files"]
    layer = document["layers"][0]

    def files(*entries: dict[str, Any]) -> dict[str, Any]:
        return {**document, "files": list(entries)}

    return {
        "schema": {**document, "schema": 2},
        "extra": {**document, "more": 1},
        "name": {**document, "name": "../up"},
        "created": {**document, "created": "yesterday"},
        "key type": {**document, "key": {"part": 1}},
        "layer twice": {**document, "layers": [layer, layer]},
        "layer size": {**document, "layers": [{**layer, "size": layer["size"] + 1}]},
        "layer digest": {**document, "layers": [{**layer, "sha256": "0"}]},
        "file escapes": files({**first, "path": "../x"}, second),
        "files unsorted": files({**second, "offset": 0}, {**first, "offset": second["length"]}),
        "gap": files(first, {**second, "offset": second["offset"] + 1}),
        "overlap": files(first, {**second, "offset": 0}),
        "case": files({**first, "path": "A"}, {**second, "path": "a"}),
        "file is directory": files({**first, "path": "a"}, {**second, "path": "a/b"}),
        "unknown layer": files({**first, "layer": "other"}, second),
        "negative": files({**first, "size": -1}, second),
        "boolean size": files({**first, "size": True}, second),
        "bomb": files({**first, "size": 1 << 31}, second),
        "missing field": {name: value for name, value in document.items() if name != "key"},
    }


def test_every_kind_of_broken_manifest_is_malformed(tmp_path: Path) -> None:
    _, manifest, _ = small(tmp_path)
    document = json.loads(manifest.encode())
    assert Manifest.parse(encode(document)) == manifest
    for what, broken in _broken(document).items():
        with pytest.raises(Malformed):
            Manifest.parse(encode(broken))
            pytest.fail(what)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_manifest_with_any_field_replaced_raises_only_malformed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    _, manifest, _ = small(tmp_path_factory.mktemp("m"))
    document = json.loads(manifest.encode())
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
        else:
            break
    node[key] = data.draw(JSON)
    with contextlib.suppress(Malformed):
        Manifest.parse(encode(document))


def test_a_manifest_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    _, manifest, _ = small(tmp_path)
    with pytest.raises(Malformed):
        replace(manifest, name="Not A Name").encode()
