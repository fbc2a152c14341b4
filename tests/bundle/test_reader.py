"""Reading bundles: what comes out, what is remembered, what is never imported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels.quant import Quantized

from edgert.bundle import Bundle, Golden, Manifest
from edgert.bundle import reader as bundle_module
from edgert.errors import BundleError
from edgert.session import Feed, SessionOptions, open_session
from edgert.storage import hash_cache
from tests.tiny import MIXES, TEMPLATE, tiny_bundle, tiny_graph, tiny_manifest, tiny_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are remembered in a folder of this test."""
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("quant", sorted(MIXES))
@pytest.mark.parametrize("ff", [96, 86, 50])
def test_round_trip(quant: str, ff: int, tmp_path: Path) -> None:
    graph = tiny_graph(quant=quant, ff=ff, tied=quant != "f16")
    weights = tiny_weights(graph, seed=3)
    path = tiny_bundle(tmp_path / "a.edge", graph=graph, weights=weights)
    with Bundle.open(path, verify="full") as bundle:
        assert bundle.graph() == graph
        found = bundle.weights()
        assert set(found) == set(weights)
        for name, expected in weights.items():
            got = found[name]
            if isinstance(expected, Quantized):
                assert isinstance(got, Quantized)
                assert got.shape == expected.shape
                assert got.encoding == expected.encoding
                assert np.array_equal(got.q, expected.q)
                assert np.array_equal(got.scales, expected.scales)
            else:
                assert np.array_equal(got, expected)
                assert got.dtype == expected.dtype
        assert bundle.path == path
        assert bundle.read("chat_template.jinja").decode() == TEMPLATE
        assert bundle.path_of("tokenizer.json") == path / "tokenizer.json"
        assert bundle.manifest.text.eos_token_ids == (1,)


def test_weights_are_views_that_outlive_the_bundle(tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle(tmp_path / "a.edge", quant="f32"))
    weights = bundle.weights()
    bundle.close()
    bundle.close()
    assert not weights["embed"].flags.owndata
    assert not weights["embed"].flags.writeable
    assert float(np.abs(weights["embed"]).sum()) > 0


def test_reference_session_runs_it(tmp_path: Path) -> None:
    with Bundle.open(tiny_bundle(tmp_path / "a.edge")) as bundle:
        session = open_session(bundle, SessionOptions(device="reference"))
        state = session.new_state()
        logits = session.step([Feed(state, np.array([0, 5, 9], np.int32), "all")])[0].logits
    assert logits.shape == (3, 260)
    assert np.isfinite(logits).all()


def test_fingerprint_is_of_the_manifest(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge", seed=1)
    with Bundle.open(path) as a:
        assert a.fingerprint == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    with Bundle.open(tiny_bundle(tmp_path / "b.edge", seed=1)) as same:
        assert same.fingerprint == a.fingerprint, "a bundle is a function of its inputs"
    with Bundle.open(tiny_bundle(tmp_path / "c.edge", seed=2)) as other:
        assert other.fingerprint != a.fingerprint


def test_manifest_round_trip() -> None:
    golden = (Golden((0, 5), (7, 8)),)
    manifest = tiny_manifest(tiny_graph(), golden=golden, report={"error": {"l0.o": 0.5}})
    entry = {"sha256": "0" * 64, "size": 3}
    names = ("model.graph.json", "weights.safetensors", "tokenizer.json", "chat_template.jinja")
    raw = json.loads(manifest.to_json()) | {"files": dict.fromkeys(names, entry)}
    again = Manifest.from_json(json.dumps(raw).encode())
    assert again.replace(files={}) == manifest
    assert Manifest.from_json(again.to_json()) == again


def test_extension_fields_are_ignored(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    raw = json.loads((path / "manifest.json").read_bytes())
    raw |= {"x-note": {"any": ["thing"]}}
    raw["text"]["x-why"] = 1
    raw["provenance"]["x-host"] = "here"
    (path / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    with Bundle.open(path) as bundle:
        assert bundle.manifest.name == "tiny"
    raw["parts"]["model"]["x-no"] = 1
    (path / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError, match="unknown field `x-no`"):
        Bundle.open(path)


def test_reading_checks_the_name_the_listing_and_the_hash(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    (path / "extra").write_bytes(b"1")
    with Bundle.open(path) as bundle:
        for name, code in (("../a.edge/tokenizer.json", "path"), ("extra", "file-missing")):
            with pytest.raises(BundleError) as caught:
                bundle.read(name)
            assert caught.value.code == code
        with pytest.raises(BundleError, match=r"file name '\.\./x'"):
            bundle.path_of("../x")
        size = (path / "tokenizer.json").stat().st_size
        (path / "tokenizer.json").write_bytes(b" " * size)
        with pytest.raises(BundleError, match="SHA-256"):
            bundle.read("tokenizer.json")
        with pytest.raises(BundleError, match=r"no part 'draft', expected one of \['model'\]"):
            bundle.graph("draft")
    with pytest.raises(ValueError, match="expected cached, full or skip"):
        Bundle.open(path, verify="maybe")  # type: ignore[arg-type]


class Counter:
    """Counts the files that are hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, real = 0, bundle_module.sha256_fd

        def counted(fd: int) -> Any:
            self.count += 1
            return real(fd)

        monkeypatch.setattr(bundle_module, "sha256_fd", counted)

    def during(self, path: Path, **options: Any) -> int:
        self.count = 0
        Bundle.open(path, **options).close()
        return self.count


def test_hashed_once_per_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tiny_bundle(tmp_path / "a.edge"), 4
    counter = Counter(monkeypatch)
    assert counter.during(path) == files, "a fresh file could change within the clock's grain"
    assert counter.during(path) == files
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    assert counter.during(path) == files
    assert counter.during(path) == 0
    assert counter.during(path, verify="full") == files
    assert counter.during(path, verify="skip") == 0
    time.sleep(0.02)
    content = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").write_bytes(content)
    assert counter.during(path) == 1, "rewritten with the same content: hashed again"
    assert counter.during(path) == 0


def test_old_bundles_are_remembered_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    counter = Counter(monkeypatch)
    now = time.time()
    monkeypatch.setattr(hash_cache.time, "time", lambda: now + 60)
    assert counter.during(path) == 4
    assert counter.during(path) == 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"k": 3}', "[" * 100_000])
def test_a_damaged_cache_costs_time_only(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    path = tiny_bundle(tmp_path / "a.edge")
    hash_cache.cache_path().parent.mkdir(parents=True, exist_ok=True)
    hash_cache.cache_path().write_text(content, encoding="utf-8")
    counter = Counter(monkeypatch)
    assert counter.during(path) == 4
    assert counter.during(path) == 0


def test_an_unwritable_cache_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "file" / "below"))
    counter = Counter(monkeypatch)
    path = tiny_bundle(tmp_path / "a.edge")
    assert counter.during(path) == 4
    assert counter.during(path) == 4


def test_the_cache_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    monkeypatch.setattr(hash_cache, "ENTRIES", 6)
    for name in "abc":
        Bundle.open(tiny_bundle(tmp_path / f"{name}.edge")).close()
    known = json.loads(hash_cache.cache_path().read_text(encoding="utf-8"))
    assert len(known) == 6
    assert any("c.edge" in key for key in known)


def test_opening_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty layers with remembered hashes: about 6 ms; a tenth of a second is a defect."""
    monkeypatch.setattr(hash_cache, "RACY_SECONDS", -1.0)
    path = tiny_bundle(tmp_path / "a.edge", layers=30)
    Bundle.open(path).close()
    best = min(_seconds(path) for _ in range(5))
    assert best < 0.1, f"{best * 1e3:.1f} ms"


def _seconds(path: Path) -> float:
    start = time.process_time()  # a busy machine does not lengthen it much
    Bundle.open(path).close()
    return time.process_time() - start


def test_opening_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    code = (
        "import sys; from edgert.bundle import Bundle; Bundle.open(sys.argv[1]).weights(); "
        "print([m for m in ('torch', 'onnx', 'transformers', 'numba', 'onnxruntime', 'tokenizers',"
        " 'safetensors', 'jinja2') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_no_descriptor_is_leaked(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts /proc/self/fd")
    path = tiny_bundle(tmp_path / "a.edge")
    bad = tiny_bundle(tmp_path / "b.edge")
    (bad / "tokenizer.json").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Bundle.open(path).close()
        with pytest.raises(BundleError):
            Bundle.open(bad)
        Bundle.open(path)  # forgotten
    assert len(os.listdir("/proc/self/fd")) == before
