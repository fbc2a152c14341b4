"""Everything edgert raises on purpose.

EdgertError
├── BundleError     a bundle or one of its files is damaged, foreign or too new
├── ConvertError    a checkpoint cannot become a bundle
├── DeviceError     a device, provider or instruction set is missing or failed
├── RequestError    a caller asked for something impossible (parameters, prompts, templates)
└── ResourceError   memory, disk or a lock is not available

Every message says what was found, what was expected and, in `hint`, what to do next.
"""

from __future__ import annotations

import re
from typing import Any

# What could steer a terminal, or what it or XML cannot show: control characters but tab and
# newline, bidirectional marks, lone surrogates, two that are no characters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 4000


def printable(text: str) -> str:
    """Text from a file as it may be shown: control characters escaped, at most 4000 characters."""
    shown = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}… ({len(text)} characters)"


class EdgertError(Exception):
    """Root of the tree. `code` is stable for machines, `hint` is the next step for people."""

    exit_code = 2

    def __init__(self, message: str, *, code: str = "", hint: str = "", **values: Any) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.code = code or type(self).__name__
        self.hint = hint
        self.values = values

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """The error as one JSON-ready object (`--json` on the command line)."""
        values = {key: str(value) for key, value in self.values.items()}
        return {
            "error": {
                "type": type(self).__name__,
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "values": values,
            }
        }


class BundleError(EdgertError):
    """A bundle, or a file in it, is damaged, foreign, unsafe or of an unknown version."""


class ConvertError(EdgertError):
    """A checkpoint is incomplete, unsupported or unsafe to convert."""


class DeviceError(EdgertError):
    """A device, execution provider or instruction set is not available or failed."""


class RequestError(EdgertError):
    """A parameter, prompt, message list or call order that cannot be served."""


class ResourceError(EdgertError):
    """Memory, disk space, a file lock or another shared resource was not to be had."""
