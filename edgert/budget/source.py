"""Where bursts come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from .statistics import F64


class Source(ABC):
    """Something that gives bursts of samples, in the units of METRICS' `scale`: seconds, bytes,
    watts. fault: why it has none and never will; every limit on them is then broken. doubt: why
    what it gives shows of no limit that it is kept."""

    name: str
    fault = ""
    doubt = ""

    @abstractmethod
    def burst(self) -> Mapping[str, F64]:
        """Samples by what they are of: seconds of tokens under "token", and so on."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""
