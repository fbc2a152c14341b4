"""Euler sampling of the flow with classifier-free guidance."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .autoencoder import CHANNELS
from .denoiser import Denoiser
from .text_encoder import TextEncoder
from .tokenizer import encode

TRAIN_STEPS = 1000


def sigmas(steps: int, shift: float) -> Tensor:
    """float64 [steps + 1], from 1 to 0, as diffusers' FlowMatchEulerDiscreteScheduler has them.

    Its least sigma is one that was shifted already, so the schedule is shifted twice there.
    """
    least = shift / TRAIN_STEPS / (1 + (shift - 1) / TRAIN_STEPS)
    line = torch.linspace(1.0, least, steps, dtype=torch.float64)
    return torch.cat([shift * line / (1 + (shift - 1) * line), torch.zeros(1, dtype=torch.float64)])


def scheduler_config(shift: float) -> dict:
    """scheduler_config.json."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": TRAIN_STEPS,
        "shift": shift,
        "use_dynamic_shifting": False,
    }


def states(encoder: TextEncoder, tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Caption states [n, L, d] and their mask bool [n, L]."""
    device = encoder.shared.weight.device
    ids = torch.from_numpy(encode(tokenizer, texts)).long().to(device)
    mask = ids > 0
    return encoder(ids, mask), mask


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    steps: int = 28,
    guidance: float = 3.0,
    shift: float = 3.0,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """z float32 [n, 32, 16, 16]; the noise of text i depends on seed and i alone."""
    device = encoder.shared.weight.device
    grid = denoiser.config.grid
    levels = sigmas(steps, shift)
    out = []
    for begin in range(0, len(texts), batch):
        some = texts[begin : begin + batch]
        caption, mask = states(encoder, tokenizer, [*some, *[""] * len(some)])
        noise = [
            torch.randn(
                CHANNELS, grid, grid, generator=torch.Generator().manual_seed(seed * 100_003 + i)
            )
            for i in range(begin, begin + len(some))
        ]
        z = torch.stack(noise).to(device)
        for now, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            time = torch.full((2 * len(some),), TRAIN_STEPS * now, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                v = denoiser(torch.cat([z, z]), time, caption, mask)
            said, unsaid = v.float().chunk(2)
            z = z + (after - now) * (unsaid + guidance * (said - unsaid))
        out.append(z)
    return torch.cat(out)
