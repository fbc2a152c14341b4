"""Keywords of the methods that answer, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .adapters import AdapterPath
from .generate import Progress
from .params import SamplingOptions
from .relay import RelayOptions
from .speculative.options import Draft
from .speculative.proposer import Proposer


class TurnOptions(SamplingOptions, total=False):
    """Of `Conversation.say`."""

    draft: Draft | None
    proposer: Proposer | None
    relay: RelayOptions | None
    progress: Progress | None


class PromptOptions(TurnOptions, total=False):
    """Of `TextModel.generate`."""

    special: bool
    context_shift: bool
    adapter: AdapterPath | None


class ChatOptions(TurnOptions, total=False):
    """Of `TextModel.chat`."""

    tools: Sequence[Mapping[str, Any]] | None
    template: Mapping[str, Any] | None
    context_shift: bool
    adapter: AdapterPath | None
