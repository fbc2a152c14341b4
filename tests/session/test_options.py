"""SessionOptions: what they refuse by themselves, and what a session refuses of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgert.bundle import Bundle
from edgert.errors import DeviceError, RequestError
from edgert.session import SessionOptions, open_session

from ..tiny import tiny_bundle


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("device", 7, "parameter-type"),
        ("threads", 1.5, "parameter-type"),
        ("kv_bits", True, "parameter-type"),
        ("ctx_size", "9", "parameter-type"),
        ("ctx_size", 0, "parameter-range"),
        ("ctx_size", 1 << 40, "parameter-range"),
        ("snapshot_bits", 8, "parameter-range"),
        ("snapshot_bits", 16.0, "parameter-type"),
    ],
)
def test_values_that_no_model_takes(field: str, value: Any, code: str) -> None:
    with pytest.raises(RequestError, match=f"{field} is {value!r}, expected") as caught:
        SessionOptions(**{field: value})
    assert caught.value.code == code


def test_values_that_this_model_or_device_does_not_take(tmp_path: Path) -> None:
    with Bundle.open(tiny_bundle(tmp_path / "a.edge", context=96)) as bundle:
        with pytest.raises(DeviceError, match="ctx_size is 97, this model takes 1 to 96") as caught:
            open_session(bundle, SessionOptions("reference", ctx_size=97))
        assert caught.value.code == "ctx-size"
        with pytest.raises(DeviceError, match="kv_bits is 8, the NumPy path keeps 32") as caught:
            open_session(bundle, SessionOptions("reference", kv_bits=8))
        assert caught.value.code == "kv-bits"
        session = open_session(bundle, SessionOptions("reference", ctx_size=50))
        assert session.context == 50
        session.close()
