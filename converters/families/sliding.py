"""Which layers see all of the text and which a window of it, as configs say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FULL, SLIDING = KINDS = ("full_attention", "sliding_attention")


def pattern(every: int, layers: int, faults: list[str]) -> list[str]:
    """Sliding layers with a full one at every `every`-th."""
    if every < 1:
        faults.append(f"config 'sliding_window_pattern' is {every}, expected 1 or more")
        return [FULL] * layers
    return [SLIDING if (i + 1) % every else FULL for i in range(layers)]


def kind_of(window: int) -> str:
    """Layer type of a window size (0: none)."""
    return SLIDING if window else FULL


def window_of(window: int | None, faults: list[str]) -> int:
    """A configured window in tokens; null means none (0)."""
    if window is not None and not 0 < window < 1 << 31:
        faults.append(f"config 'sliding_window' is {window}, expected 1 or more, or null")
        return 0
    return window or 0


def typed_windows(
    kinds: Sequence[str], window: int | None, layers: int, faults: list[str]
) -> list[int]:
    """Window of each layer (0: none) from its type."""
    if len(kinds) != layers or set(kinds) - set(KINDS):
        faults.append(
            f"config 'layer_types' has {len(kinds)} entries of {sorted(set(kinds))[:8]}, expected "
            f"{layers} of {list(KINDS)}"
        )
        return [0] * layers
    if SLIDING in kinds and window is None:
        faults.append("config 'sliding_window' is null, expected a size: some layers slide")
        return [0] * layers
    size = window_of(window, faults)
    return [size if kind == SLIDING else 0 for kind in kinds]


def upper_windows(config: Any, faults: list[str]) -> list[int]:
    """Qwen's rule: layers from max_window_layers on slide, where use_sliding_window says so."""
    layers = config.num_hidden_layers
    window = config.sliding_window if config.use_sliding_window else None
    kinds = config.layer_types or [
        SLIDING if window is not None and i >= config.max_window_layers else FULL
        for i in range(layers)
    ]
    return typed_windows(kinds, window, layers, faults)
