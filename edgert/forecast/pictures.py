"""Seconds of a picture: its pieces' work, each as often as it is run, over the rates of a device.

    t = sum over pieces ( times * ( step + sum_i (...) of `latency` + copies in and out ) )

What the pieces of a bundle are, and how often a cache policy runs them, says `image.expected`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from ..devices.profile import Rates
from .latency import run_parts
from .work import Work

Phase = Literal["encode", "denoise", "decode"]
PHASES: tuple[Phase, ...] = ("encode", "denoise", "decode")
COPIES = 4  # times that a value which goes into a piece, or comes out, is read and written


class Piece(NamedTuple):
    """A graph that is run `times` times for a picture, on average. counts: rows by symbol. outside:
    floats that go in and come out of it."""

    phase: Phase
    found: tuple[Work, ...]
    counts: Mapping[str, int]
    times: float
    outside: float = 0.0


def picture_parts(pieces: Sequence[Piece], rates: Rates) -> dict[str, float]:
    """Seconds of a picture by phase."""
    parts: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    for piece in pieces:
        once = sum(run_parts(piece.found, rates, piece.counts).values())
        parts[piece.phase] += piece.times * (once + COPIES * piece.outside / rates.values_s)
    return parts


def picture_seconds(pieces: Sequence[Piece], rates: Rates) -> float:
    """Seconds of a picture."""
    return sum(picture_parts(pieces, rates).values())
