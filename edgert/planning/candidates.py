"""What can be made of a model, and what it takes: bytes from its sizes, seconds from the same rates
as those of a graph.

Bits a weight of a symmetric group quantiser: b + 16 / G. A matrix [m, n] factored by COMPOT holds
Q [m, k] and S [k, n] with s values a column and a bitmap: (m k b + n s b + k n) / 8 bytes and
scales; the ratio r is defined at 16 bits and does not compound with b.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from ..devices.profile import Profile, Rates
from ..forecast.latency import paced_seconds, prompt_seconds, within
from ..forecast.memory import BASE, FRESH, TOKENIZER
from ..forecast.rates import alone_of, rates_of
from ..forecast.work import MAX_ROWS, Work
from ..session.pages import PAGE_TOKENS
from .cards import ACCEPTED, DRAFT_TOKENS, Card, Workload

BITS = (2, 3, 4, 5, 6, 8, 16)
GROUPS = (32, 64, 128)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
KV_BITS = (4, 8, 16)
COMPUTED_KV = {"cpu": (4, 8, 16)}  # what the sessions keep; others: 16
KV_BYTES = {16: 2.0, 8: 1.125, 4: 0.875}  # of an element, scales included; keys have 8 bits at 4
RISKY = 4  # bits below which nothing is offered without healing or being asked to
PER_STEP = 2.0  # values of a column of S for each of k: k / s
RUNTIME = 150e6  # bytes of a process of ONNX Runtime besides
JSON_TOKEN = 30.0  # bytes of a tokenizer.json for each token, white space aside
LAUNCHES = 9  # instructions of a layer
MARGIN = 1.1


class Candidate(msgspec.Struct, frozen=True):
    """A model and how it is stored and run. draft: the model that proposes tokens for it, at 4
    bits; "" for none."""

    model: str
    bits: int
    group: int
    ratio: float
    kv_bits: int
    provider: str = "cpu"
    healed: bool = False
    linear_attention: float = 0.0
    draft: str = ""

    @property
    def label(self) -> str:
        """As "smollm2-360m int4-g64 r0.2 kv16 cpu"."""
        parts = [self.model, f"int{self.bits}-g{self.group}" if self.bits < 16 else "f16"]
        parts += [f"r{self.ratio:g}"] if self.ratio else []
        parts += [f"linear{self.linear_attention:g}"] if self.linear_attention else []
        parts += [f"draft {self.draft}"] if self.draft else []
        return " ".join([*parts, f"kv{self.kv_bits}", self.provider])


class Costs(msgspec.Struct, frozen=True):
    """Bytes and seconds of a candidate on a device. violation: of the limit that is kept least, a
    share of it; at most 1 where all are kept. binding: that limit."""

    memory: float
    stored: float
    token_s: float
    ttft_s: float
    total_s: float
    violation: float
    binding: str


def ranks(m: int, n: int, ratio: float, step: float = PER_STEP) -> tuple[int, int]:
    """k and s of a factored matrix at a ratio, k at most min(m, n)."""
    k = int((1 - ratio) * 16 * m * n / (16 * m + 16 * n / step + n))
    k = max(1, min(k, m, n))
    return k, max(1, int(k / step))


def matrix_bytes(m: int, n: int, bits: int, group: int, ratio: float) -> float:
    """Bytes of a stored matrix of m inputs and n outputs."""
    width = bits if bits == 16 else bits + 16 / group
    if not ratio:
        return m * n * width / 8
    k, s = ranks(m, n, ratio)
    return (m * k * width + n * s * width + k * n) / 8


def matrix_ops(m: int, n: int, ratio: float) -> float:
    """Operations of a row."""
    if not ratio:
        return 2.0 * m * n
    k, s = ranks(m, n, ratio)
    return 2.0 * m * k + 2.0 * n * s


def works_of(card: Card, one: Candidate) -> tuple[Work, ...]:
    """The instructions of a step, as `forecast.latency` takes them: products of all layers, their
    attention, the head, and as many launches as a layer has."""
    bits, linear = one.bits, one.linear_attention
    kernel, ends = ("f16", "f16") if bits == 16 else (f"int{bits}", "int8")
    out = []
    for n, m in card.matrices:
        size = matrix_bytes(m, n, bits, one.group, one.ratio) * card.layers
        ops = matrix_ops(m, n, one.ratio) * card.layers
        out.append(Work(kernel, "T", (False, False), nbytes=size, ops=ops))
    softmax = card.layers * (1 - linear)
    cache = 2.0 * softmax * card.kv_heads * card.head_dim * KV_BYTES[one.kv_bits]
    look = 4.0 * softmax * card.heads * card.head_dim
    out.append(Work("", "T", (False, False), cache=cache, look_ops=look))
    state = 8.0 * linear * card.layers * card.heads * card.head_dim**2
    out.append(Work("", "T", (False, False), state=state))
    head = card.vocabulary * card.width
    out.append(Work(ends, "R", (False, False), head * _ends(bits) / 8, 2.0 * head))
    out.append(Work("", "T", (True, True), launches=LAUNCHES * card.layers))
    return tuple(out)


def _ends(bits: int) -> float:
    """Bits a weight of the embedding and head: 8 in groups of 128, as 16 where all is."""
    return 16.0 if bits == 16 else 8 + 16 / 128


def memory_of(
    card: Card, one: Candidate, load: Workload, *, base: float = BASE
) -> tuple[float, float]:
    """Bytes of a process, and of the files, as `forecast.memory` counts those of a graph. base:
    bytes of the process without a model; tables of which only rows are read are not in it."""
    weights = card.layers * sum(
        matrix_bytes(m, n, one.bits, one.group, one.ratio) for n, m in card.matrices
    )
    head = card.vocabulary * card.width * _ends(one.bits) / 8
    softmax = (card.kv_layers or card.layers) * (1 - one.linear_attention)
    rows = 2 * softmax * card.kv_heads * card.head_dim * load.batch
    kv = rows * load.context * KV_BYTES[one.kv_bits]
    if one.kv_bits < 16:  # pages that are not coded yet
        kv += rows * min(load.context, FRESH * PAGE_TOKENS) * KV_BYTES[16]
    state = card.layers * one.linear_attention * card.heads * card.head_dim**2 * 4 * load.batch
    live = min(MAX_ROWS, load.context) * (2 * card.width + 2 * card.ff) * 4
    rest = _process(card, one, base)
    return weights + head + kv + state + live + rest, weights + card.embedding * _ends(one.bits) / 8


def _process(card: Card, one: Candidate, base: float) -> float:
    """Bytes of a process without a model, and of a tokenizer."""
    if one.provider != "cpu":
        return RUNTIME
    return base + TOKENIZER * JSON_TOKEN * card.vocabulary


def drafting(card: Card, one: Candidate) -> Candidate:
    """How a card that drafts for a candidate is stored and run."""
    return Candidate(card.name, 4, GROUPS[0], 0.0, one.kv_bits, one.provider)


def costs_of(
    card: Card,
    one: Candidate,
    device: Profile,
    load: Workload,
    draft: Card | None = None,
    *,
    rates: Rates | None = None,
) -> Costs:
    """What a candidate takes on a device for a workload. draft: the card that its `draft` names.
    rates: of the candidate's provider, where they are known already."""
    base = device.measured.base_bytes if device.measured else BASE
    memory, stored = memory_of(card, one, load, base=base)
    if draft is not None:  # of the same vocabulary, in the same process
        more, files = memory_of(draft, drafting(draft, one), load, base=base)
        memory, stored = memory + more - _process(draft, one, base), stored + files
    rates = rates or rates_of(device, provider=one.provider)
    alone = alone_of(device, one.provider)
    found = works_of(card, one)
    ttft = prompt_seconds(found, rates, load.prompt)
    depth = min(load.context, load.prompt + load.new_tokens)
    token = load.batch * paced_seconds(found, rates, alone, depth=depth)
    if draft is not None:
        token, ttft = _drafted(card, draft, one, (rates, alone), load, ttft)
    total = ttft + load.new_tokens * token
    spread, sure = device.spread, load.percentile
    shares = {
        "memory": MARGIN * memory / device.memory.usable.value,
        "storage": stored / device.storage.size.value,
    }
    for name, seconds, budget in (
        ("time to first token", ttft, load.ttft_budget_s),
        ("time a token", token, load.tok_budget_s),
        ("total time", total, load.total_budget_s),
    ):
        if budget is not None:
            shares[name] = within(seconds, budget, spread, sure)
    binding = max(shares, key=lambda name: shares[name])
    return Costs(memory, stored, token, ttft, total, shares[binding], binding)


def _drafted(
    card: Card,
    draft: Card,
    one: Candidate,
    paced: tuple[Rates, Rates | None],
    load: Workload,
    ttft: float,
) -> tuple[float, float]:
    """Seconds of a token and to the first, where `draft` proposes: both read the prompt; a turn is
    so many steps of the one and a step of all its tokens of the other (arXiv 2211.17192)."""
    small = works_of(draft, drafting(draft, one))
    depth, rows = min(load.context, load.prompt + load.new_tokens), DRAFT_TOKENS + 1
    turn = DRAFT_TOKENS * paced_seconds(small, *paced, depth=depth)
    turn += paced_seconds(works_of(card, one), *paced, rows=rows, depth=depth, logits=rows)
    accepted = card.accepted.get(draft.name, ACCEPTED)
    return load.batch * turn / (accepted + 1), ttft + prompt_seconds(small, paced[0], load.prompt)


def candidates(
    cards: Sequence[Card], device: Profile, *, allow_risky: bool = False,
    bits: Sequence[int] = BITS, groups: Sequence[int] = GROUPS, ratios: Sequence[float] = RATIOS,
    kv_bits: Sequence[int] = KV_BITS, load: Workload | None = None, drafts: bool = False,
) -> Iterator[tuple[Card, Candidate]]:  # fmt: skip
    """All that a device's providers can run of some models. A linear-attention twin of a model is a
    card of its own. drafts: also pairs with a model of a third of the size or less."""
    batch = load.batch if load else 1
    for card, name in itertools.product(cards, sorted(device.providers)):
        row = device.providers[name]
        if batch > row.max_batch:
            continue
        for b, group, ratio, kv in itertools.product(bits, groups, ratios, kv_bits):
            if b not in row.bits or kv not in COMPUTED_KV.get(name, (16,)):
                continue
            if b == 16 and group != groups[0]:
                continue  # no groups
            if b < RISKY and not (card.healed or allow_risky):
                continue
            for draft in ("", *(d.name for d in cards if drafts and _drafts_for(d, card))):
                yield (
                    card,
                    Candidate(
                        card.name, b, group, ratio, kv, name, card.healed, card.linear_attention,
                        draft,
                    ),
                )  # fmt: skip


def _drafts_for(draft: Card, card: Card) -> bool:
    return 3 * draft.parameters <= card.parameters and draft.vocabulary == card.vocabulary
