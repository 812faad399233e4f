"""What is asked for against what a store has: which parts stand in the way, and what each comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aot.artifact.key import Key
from aot.cache_store.local import LocalStore
from aot.cache_store.store import read_manifest
from aot.machine.target import Target
from aot.verbs.doctor import doctor
from aot.verbs.explain import explain, meaning


def _key(store: LocalStore) -> Key:
    ((_, digest),) = store.refs()
    return Key(read_manifest(store, digest).key)


def test_the_artifact_of_what_is_asked_for_serves_it_and_nothing_differs(store: LocalStore) -> None:
    (found,) = explain(_key(store), store)
    assert (set(found.serves), found.parts, found.blocking) == ({"transformer", "vae.decoder"}, (), 0)


@pytest.mark.parametrize(
    ("part", "value", "weight", "serves"),
    [
        ("mode", "max-autotune", "blocking", set()),
        ("component/transformer/fingerprint", "another", "blocking", {"vae.decoder"}),
        ("target.torch", "2.99.0", "degrading", set()),
        ("target.diffusers", "0.1.0", "harmless", {"transformer", "vae.decoder"}),
        ("component/transformer/source", "another", "harmless", {"transformer", "vae.decoder"}),
        ("signatures/transformer", "1 sha256:0", "degrading", {"transformer", "vae.decoder"}),
        ("shapes", "1024x1024", "harmless", {"transformer", "vae.decoder"}),
    ],
)
def test_each_part_that_differs_has_a_weight_and_a_reason(store: LocalStore, part: str, value: str, weight: str, serves: set[str]) -> None:
    asked = Key({**_key(store).parts, part: value})
    (found,) = explain(asked, store)
    (differs,) = found.parts
    assert (differs.name, differs.asked, differs.weight, set(found.serves)) == (part, value, weight, serves)
    assert differs.why


def test_artifacts_of_other_models_are_not_told_of(store: LocalStore) -> None:
    parts = {name: "Other" if name.endswith("/class") else value for name, value in _key(store).parts.items()}
    assert explain(Key(parts), store) == []


def test_every_part_of_a_real_key_has_a_meaning(store: LocalStore) -> None:
    key = _key(store)
    here = Target.of_parts(key.parts)
    assert all(why for name in key.parts for _, why in [meaning(name, here.check(here))])


def _aot(store: LocalStore, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "AOT_HOME": str(store.root)}
    return subprocess.run([sys.executable, "-m", "aot.cli.app", *words], capture_output=True, text=True, env=environ, check=False)


def test_explain_and_diff_say_it_in_words(store: LocalStore) -> None:
    same = _aot(store, "explain", "pixart-alpha", "--variant", "tiny", "--scope", "whole", "--gpu", "cpu")
    assert same.returncode == 0
    assert ": serves " in same.stdout
    assert "would be served" in same.stderr
    other = json.loads(
        _aot(store, "explain", "pixart-alpha", "--variant", "tiny", "--mode", "max-autotune", "--gpu", "cpu", "--json").stdout
    )
    assert [(one["serves"], one["blocking"]) for one in other] == [([], 1)]
    ((ref, _),) = store.refs()
    assert "are one artifact" in _aot(store, "diff", ref.name, str(ref.key.hex[:12])).stdout
    assert _aot(store, "diff", ref.name, "nothing").returncode == 6


def test_the_doctor_names_what_is_lacking_and_its_remedy(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {**os.environ, "AOT_HOME": str(store.root)}
    well = {one.what: one for one in doctor(environ)}
    assert [name for name, one in well.items() if not one.ok and one.needed_to != "build for GPUs"] == []
    assert well["store"].found == f"{store.root}: 1 artifacts"
    ill = {
        one.what: one for one in doctor({**environ, "CXX": "no-compiler", "AOT_SIGNING_KEY": "/no/key", "NEXFORT_GRAPH_CACHE": "nfs://x"})
    }
    assert "no-compiler" in ill["C++ compiler"].found
    assert all(ill[what].remedy for what in ("C++ compiler", "keys", "NEXFORT_GRAPH_CACHE"))
    monkeypatch.setattr("aot.verbs.doctor.version", lambda _: "2.3.0")
    assert "install torch from 2.11" in next(one for one in doctor(environ) if one.what == "torch").remedy
    said = _aot(store, "doctor", "--json")
    assert (said.returncode, {one["what"] for one in json.loads(said.stdout)}) == (0, set(well))


def test_the_doctor_makes_no_key(tmp_path: Path) -> None:
    doctor({**os.environ, "AOT_HOME": str(tmp_path / "home")})
    assert not (tmp_path / "home" / "keys").exists()
