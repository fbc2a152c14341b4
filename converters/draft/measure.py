"""How many tokens a step a head gives: answers written with its guesses, on torch.

Every cycle computes the whole texts anew, all prompts together: slow and plain, for measuring only.
Guesses are drawn and checked by rejection (arXiv 2211.17192), at temperature 0 by equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .head import Head
from .target import Ids, Target, picked

RESAMPLED = 2000  # sets of prompts that an interval is drawn from
LEVEL = 0.95


@dataclass(frozen=True)
class Written:
    """Of each prompt: cycles, tokens written in them, guesses made and those that stood; and the
    answers."""

    cycles: NDArray[np.int64]
    tokens: NDArray[np.int64]
    guessed: NDArray[np.int64]
    stood: NDArray[np.int64]
    texts: list[Ids]

    @property
    def tau(self) -> float:
        """Tokens a cycle."""
        return float(self.tokens.sum() / max(1, self.cycles.sum()))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % of tau over sets of prompts drawn with replacement (bootstrap)."""
        rng, count = np.random.default_rng(seed), len(self.cycles)
        some = rng.integers(0, count, (RESAMPLED, count))
        found = self.tokens[some].sum(1) / np.maximum(1, self.cycles[some].sum(1))
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def ratio(after: Written, before: Written, seed: int = 0) -> tuple[float, float, float]:
    """tau of one over that of the other on the same prompts, and 95 % of it (paired bootstrap)."""
    rng, count = np.random.default_rng(seed), len(after.cycles)
    some = rng.integers(0, count, (RESAMPLED, count))
    taus = [w.tokens[some].sum(1) / np.maximum(1, w.cycles[some].sum(1)) for w in (after, before)]
    low, high = np.quantile(taus[0] / taus[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return after.tau / before.tau, float(low), float(high)


class Writing:
    """Prompts that are being answered. ids: int [V_d], what the head's logits are of."""

    def __init__(
        self, target: Target, head: Head, ids: Tensor, prompts: Sequence[Ids], *,
        count: int, gamma: int, temperature: float, ends: Sequence[int], seed: int,
    ) -> None:  # fmt: skip
        self.target, self.head, self.ids = target, head, ids
        self.count, self.gamma, self.temperature = count, gamma, temperature
        device = target.device
        self.random = torch.Generator(device).manual_seed(seed)
        self.ends = torch.tensor(list(ends), device=device)
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.prompts = self.lengths.clone()
        longest = int(self.lengths.max())
        tokens = np.zeros((len(prompts), longest + count + 2 * gamma + 2), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        self.tokens = torch.from_numpy(tokens).to(device)
        self.sums = np.zeros((4, len(prompts)), np.int64)
        self.alive = torch.arange(len(prompts), device=device)

    @torch.no_grad()
    def run(self) -> Written:
        """All answers, of `count` tokens or to an end."""
        tokens, lengths = self.tokens, self.lengths
        features = self.target.rows(tokens[:, : int(lengths.max())]).features
        while len(self.alive):
            now, n = tokens[self.alive], lengths[self.alive]
            drafts, laws = self._guess(now, n, features)
            at = n[:, None] + torch.arange(self.gamma, device=n.device)
            now.scatter_(1, at, drafts)
            rows = self.target.rows(now[:, : int(n.max()) + self.gamma])
            behind = n[:, None] - 1 + torch.arange(self.gamma + 1, device=n.device)
            hidden = rows.hidden.gather(1, behind[..., None].expand(-1, -1, rows.hidden.shape[2]))
            made, kept, stood = self._check(self.target.logits(hidden), drafts, laws)
            now.scatter_(1, n[:, None] + torch.arange(self.gamma + 1, device=n.device), made)
            tokens[self.alive], lengths[self.alive] = now, n + kept
            features = rows.features[self._count(made, kept, stood)]
        each = zip(tokens.cpu().numpy(), self.prompts.tolist(), lengths.tolist(), strict=True)
        texts = [row[a : min(b, a + self.count)].astype(np.int32) for row, a, b in each]
        return Written(self.sums[0], self.sums[1], self.sums[2], self.sums[3], texts)

    def _guess(self, tokens: Tensor, n: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Guesses int [B, gamma] and the laws [B, gamma, V_d] that they were drawn from."""
        width = int(n.max())
        target, head = self.target, self.head
        found, laws = list[Tensor](), list[Tensor]()
        with target.casting():
            embedded = target.embedded(tokens[:, 1:width])
            memory = head.first(features[:, : width - 1], embedded, (n - 2)[:, None])
            for place in range(self.gamma):
                if place:
                    head.further(memory, target.embedded(found[-1])[:, None])
                logits = head.logits(memory.a)[:, 0].float()
                law = self._law(logits)
                pick = self._draw(law)
                laws.append(law)
                found.append(self.ids[pick])
        return torch.stack(found, 1), torch.stack(laws, 1)

    def _law(self, logits: Tensor) -> Tensor:
        if self.temperature > 0:
            return (logits / self.temperature).softmax(-1)
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    def _draw(self, law: Tensor) -> Tensor:
        warm = torch.ones(len(law), device=law.device)
        return picked(law.clamp(min=1e-30).log(), warm, self.random)

    def _check(self, logits: Tensor, drafts: Tensor, laws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens int [B, gamma + 1] of which the first `kept` [B] count; guesses that stood [B]."""
        batch, gamma = drafts.shape
        p = self._law(logits)
        q = torch.zeros_like(p[:, :gamma]).index_copy_(2, self.ids, laws)
        chance = p[:, :gamma].gather(2, drafts[..., None])[..., 0]
        drawn = q.gather(2, drafts[..., None])[..., 0]
        u = torch.rand((batch, gamma), generator=self.random, device=p.device)
        right = (u * drawn < chance).long().cumprod(1)
        stood = right.sum(1)
        each = torch.arange(batch, device=p.device)
        rest = (p[:, :gamma] - q).clamp(min=0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 1e-9, rest, p[:, :gamma])
        rest = torch.cat([rest, p[:, gamma:]], 1)[each, stood]
        made = torch.cat([drafts, drafts[:, :1]], 1)
        made[each, stood] = self._draw(rest / rest.sum(-1, keepdim=True))
        places = torch.arange(gamma + 1, device=p.device)
        ended = torch.isin(made, self.ends) & (places <= stood[:, None])
        kept = torch.where(ended.any(1), ended.long().argmax(1), stood) + 1
        return made, kept, torch.minimum(stood, kept)

    def _count(self, made: Tensor, kept: Tensor, stood: Tensor) -> Tensor:
        """Note a cycle; bool [B], who goes on."""
        rows = self.alive.cpu().numpy()
        values = (torch.ones_like(kept), kept, torch.full_like(kept, self.gamma), stood)
        for sums, value in zip(self.sums, values, strict=True):
            sums[rows] += value.cpu().numpy()
        last = made.gather(1, (kept - 1)[:, None])[:, 0]
        full = self.lengths[self.alive] - self.prompts[self.alive] >= self.count
        going = ~(torch.isin(last, self.ends) | full)
        self.alive = self.alive[going]
        return going
