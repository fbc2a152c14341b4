"""Sessions: the same interface over every executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DeviceError
from .base import Feed, Session, State

if TYPE_CHECKING:
    from ..bundle import Bundle

__all__ = ["Feed", "Session", "State", "open_session"]

DEVICES = ("cpu", "reference")


def open_session(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, ctx_size: int = 0
) -> Session:
    """A session on `device` for the bundle's "model" part.

    threads: None means one per performance core. ctx_size: tokens a state may hold, 0 means what
    the model was made for. Raises DeviceError for a device that is unknown or not usable here.
    """
    if device == "reference":
        from .reference import ReferenceSession

        return ReferenceSession(bundle.graph(), bundle.weights(), context=ctx_size)
    raise DeviceError(f"device {device!r} is unknown, expected one of {DEVICES}", code="device")
