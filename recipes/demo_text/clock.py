"""Time per step and random generators: the two things about a device that a resume must respect."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Pace:
    """Seconds per step without stalling the device: a lap waits for the step before it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.events: list[torch.cuda.Event] = []
        self.begin = time.perf_counter()

    def restart(self) -> None:
        """Leave out the time since the last lap."""
        self.begin = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self.cuda:
            event = torch.cuda.Event()
            event.record()
            self.events.append(event)
            if len(self.events) > 1:
                self.events.pop(0).synchronize()
        return self._split()

    def finish(self) -> float:
        """Wait for everything; seconds since the last lap."""
        if self.cuda:
            torch.cuda.synchronize()
        return self._split()

    def _split(self) -> float:
        now = time.perf_counter()
        seconds, self.begin = now - self.begin, now
        return seconds


def generators(device: torch.device) -> dict[str, Tensor]:
    """States of the random generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(device: torch.device, states: dict[str, Tensor]) -> None:
    """Put the generators back."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
