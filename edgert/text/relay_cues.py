"""The file of cues that fit two models (`RelayCues`): what `edgert relay-calibrate` writes.

One JSON object:

    {"schema": 1, "cues": ["Therefore,", "Now"], "large": "...", "small": "...", ...}

`cues` is what `RelayOptions` takes; the rest says where they come from. A file may come from a
stranger: it is refused whole unless it is small, strictly typed and its cues are words
(`relay.check_cues`).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import msgspec

from .. import limits
from ..errors import RequestError
from ..storage.aside import write_output
from ..storage.typed import Reader
from .relay import check_cues

SCHEMA = 1
LED_BY = tuple(
    "Therefore Thus So Similarly Also Alternatively Wait Hmm But However Hence Another Oh Maybe "
    "Other Again Now Ah Any Specifically Then Next".split()
)
CHECKS = ("check", "double-check", "verify")


def _candidates() -> tuple[str, ...]:
    """Each word capitalised and not, bare and with a comma. A bare "So" ends in a space, since many
    words begin with it."""
    found = []
    for word in LED_BY:
        for spelt in (word, word.lower()):
            found += ["So ".replace("S", spelt[0]) if word == "So" else spelt, f"{spelt},"]
    return (*found, *CHECKS)


CANDIDATES = _candidates()  # the 91 of RelayGen's authors


class CueScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of a cue.

    segments: texts behind it up to the end of the sentence, in all traces; tokens: of these.
    inside: mean margin of these tokens, between 0 and 1; delta: by how much more than that of all
    others. error: delta's standard error; None of a single segment.
    """

    cue: str
    segments: int
    tokens: int
    inside: float
    delta: float
    error: float | None = None


class RelayCues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cues of two models. cues: the most confident first. large, small: the models' names. traces,
    tokens: what was measured. margin: mean of all tokens. scores: of every candidate that occurred,
    kept or not."""

    schema: int = SCHEMA
    cues: tuple[str, ...] = ()
    large: str = ""
    small: str = ""
    traces: int = 0
    tokens: int = 0
    margin: float = 0.0
    scores: tuple[CueScore, ...] = ()


_READER = Reader(RelayCues)


def read_cues(path: str | PathLike[str]) -> RelayCues:
    """The cues of a file. Raises RequestError for one that is damaged, foreign, too large, or holds
    cues that are none."""
    try:
        with open(path, "rb") as file:
            data = file.read(limits.RELAY_BYTES + 1)
        if len(data) > limits.RELAY_BYTES:
            raise ValueError(f"more than {limits.RELAY_BYTES} bytes")
        found = _READER.decode(data)
        if found.schema != SCHEMA:
            raise ValueError(f"schema {found.schema}, expected {SCHEMA}")
    except OSError as error:
        said = str(error.strerror or error)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        said = str(error)[:200]
    else:
        check_cues(found.cues, str(path))
        return found
    raise RequestError(
        f"{path}: {said}, expected cues of `edgert relay-calibrate`",
        code="relay-cues",
        hint="write them with: edgert relay-calibrate LARGE SMALL --problems FILE -o cues.json",
    )


def write_cues(path: str | PathLike[str], cues: RelayCues) -> None:
    """Write a file of cues, aside and then renamed. Raises ResourceError where that fails."""
    plain = msgspec.json.format(msgspec.json.encode(cues), indent=1)
    write_output(Path(path), plain + b"\n")
