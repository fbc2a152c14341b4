"""The processes of a `torchrun`: who computes what, and sums over all of them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ConvertError


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; alone, nothing is sent."""

    rank: int = 0
    world: int = 1

    @property
    def slice(self) -> slice:
        """This rank's part of a batch; may be empty."""
        return slice(self.rank, None, self.world)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks into tensors, in place."""
        if self.world > 1:
            self._each(tensors, dist.all_reduce)

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Put rank 0's values into tensors, in place."""
        if self.world > 1:
            self._each(tensors, lambda flat: dist.broadcast(flat, src=0))

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            cuda = dist.get_backend() == "nccl"
            self.add_up([torch.zeros(1, device="cuda" if cuda else "cpu")])

    def _each(self, tensors: Sequence[Tensor], send: Callable[[Tensor], Any]) -> None:
        """Send tensors of one type as one message."""
        sizes = [tensor.numel() for tensor in tensors]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        send(flat)
        for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))


def local_device(asked: str | None) -> str:
    """Where this process computes: the GPU of its own number, or what was asked for. Raises
    ConvertError for what torch does not have here."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if asked is None else asked
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise ConvertError(
            f"device {device[:80]!r} is none that torch can use here: {str(error)[:200]}",
            code="torch-device",
            hint="name cuda or cpu, or leave it out",
        ) from None
    return device


def joined(device: str) -> Ranks:
    """The ranks of an initialised process group, or of one that torchrun's environment asks for.

    Such a group stays until the process ends: made a second time with the same store, a rank can
    find the addresses of the first one there and wait for ever.
    """
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
