"""The stage cache: what is read back, what is believed, and what is thrown away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.converters.stages.cache import StageCache
from edgert.converters.stages.weight_cache import WeightCache
from edgert.kernels.encodings import dequantize, quantize

from edgert.graph import Weight
from tests.tiny import tiny_graph

KEYS = {("model", "split"): "a" * 64, ("model", "quantize"): "b" * 64}


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((63, 70)).astype(np.float32)


@pytest.mark.parametrize("encoding", ["f32", "f16", "int8-g32", "int4-g32"])
def test_rows_come_back_in_every_encoding(
    tmp_path: Path, values: np.ndarray, encoding: str
) -> None:
    cache = WeightCache(tmp_path / "s", "key", {"w": Weight((63, 70), encoding)})
    if encoding.startswith("int"):
        stored = quantize(values, encoding)
        cache.write("w.q", stored.q)
        cache.write("w.scales", stored.scales)
        expected, suffix, codes = dequantize(stored), ".q", stored.q
    else:
        suffix, codes = "", values.astype(np.float16 if encoding == "f16" else np.float32)
        cache.write("w", codes)
        expected = codes.astype(np.float32)
    cache.finish("w", {})
    reader = cache.reader("w")
    assert (reader.shape, reader.encoding) == ((63, 70), encoding)
    assert list(reader.spans()) == [(0, 63)]
    assert np.array_equal(reader.rows(0, 63), expected)
    assert np.array_equal(reader.rows(7, 8), expected[7:8])
    assert np.array_equal(reader.stored(5, 63)[suffix], codes[5:])
    assert "weight 'w', rows 5 to 63" in reader.where(5, 63)
    cache.close()


def test_a_weight_is_done_once_all_of_it_is_there(tmp_path: Path, values: np.ndarray) -> None:
    graph = tiny_graph()
    cache = WeightCache(tmp_path / "s", "key", {"w": Weight((63, 70))})
    cache.write("w", values[:9])
    with pytest.raises(ValueError, match=r"weight 'w': tensors \['w'\] are incomplete"):
        cache.finish("w", {})
    with pytest.raises(ValueError, match=r"weights \['w'\] are not finished"):
        cache.complete(graph, {})
    cache.write("w", values[9:])
    with pytest.raises(ValueError, match="4 bytes more than declared"):
        cache.write("w", values[0, :1])
    cache.finish("w", {"error": 0.25})
    cache.complete(graph, {})
    cache.close()
    again = WeightCache(tmp_path / "s", "key", {"w": Weight((63, 70))})
    record = again.done("w")
    assert record is not None
    assert record.note == {"error": 0.25}
    assert again.taken == {"w"}
    again.close()
    for key, weight in (("other", Weight((63, 70))), ("key", Weight((63, 70), "f16"))):
        other = WeightCache(tmp_path / "s", key, {"w": weight})
        assert other.done("w") is None
        other.close()


def test_what_belongs_to_no_stage_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "m.edge.stage"
    caches = StageCache(root, KEYS, resume=True)
    for stage in ("split", "quantize"):
        caches.open("model", stage, {"w": Weight((4, 4))})
    caches.close()
    (root / "journal").write_text("of an older version", encoding="utf-8")
    (root / "draft" / "split").mkdir(parents=True)
    StageCache(root, KEYS | {("model", "quantize"): "c" * 64}, resume=True)
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}
    assert left == {"model", "model/split"}
    assert not (root / "journal").exists()
    StageCache(root, KEYS, resume=False)
    assert not root.exists()
