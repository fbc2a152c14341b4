"""Random damage: a bundle opens, or gives a BundleError with a next step. Nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgert.bundle import Bundle, Manifest
from edgert.errors import BundleError
from edgert.storage.safetensors import read_header
from tests.hostile.spoil import file_of, header_of
from tests.tiny import reseal, tiny_bundle

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("fuzz") / "good.edge", layers=1)


def fault(action: Callable[[], object]) -> BundleError | None:
    """The BundleError that an action ends with; any other exception fails the test."""
    try:
        action()
    except BundleError as error:
        return error
    return None


def check(error: BundleError | None) -> None:
    assert error is None or (error.message and error.hint and error.code != "BundleError")


@QUICK
@given(
    name=st.sampled_from(["manifest.json", "model.graph.json", "weights.safetensors"]),
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    count=st.sampled_from([0, 1, 2, 9]),
)
def test_damaged_bytes(name: str, at: float, byte: int, count: int, good: Path) -> None:
    """Bytes replaced (or the rest cut off) anywhere; of the weights, in the header."""
    path = good.with_name("bad.edge")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, path)
    data = (path / name).read_bytes()
    area = len(data) - len(header_of(data)[1]) if name.startswith("weights") else len(data)
    start = int(at * area)
    tail = data[start + count :] if count else b""
    (path / name).write_bytes(data[:start] + bytes([byte]) * count + tail)
    if name != "manifest.json":
        reseal(path)
    check(fault(lambda: Bundle.open(path).close()))


@QUICK
@given(key=st.integers(0, 100), value=JSON, field=st.integers(0, 9))
def test_odd_values_in_the_manifest(key: int, value: Any, field: int, good: Path) -> None:
    raw = json.loads((good / "manifest.json").read_bytes())
    at = raw["text"] if field < 5 else raw
    at[sorted(at)[key % len(at)]] = value
    check(fault(lambda: Manifest.from_json(json.dumps(raw).encode())))


@QUICK
@given(value=JSON, where=st.sampled_from(["entry", "dtype", "shape", "data_offsets", "root"]))
def test_odd_values_in_the_header(value: Any, where: str, good: Path) -> None:
    header, data = header_of((good / "weights.safetensors").read_bytes())
    if where == "root":
        header = value
    elif where == "entry":
        header["norm"] = value
    else:
        header["norm"][where] = value
    path = good.with_name("fuzz.safetensors")
    path.write_bytes(file_of(json.dumps(header).encode(), data))
    check(fault(lambda: read_header(path)))
