"""Models by their sizes, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import RequestError, printable
from ..graph import Graph
from ..kernels.states import KVState
from ..storage.typed import Reader

LARGEST = 1e15
MOST = 100  # cards, for each is planned in hundreds of forms
NAME = 80  # characters
LEAST_S, MOST_S = 1e-6, 1e9  # of a budget
COUNTS = ("prompt_tokens", "new_tokens", "context", "batch", "caption_tokens")
ABSENT = ("image_tokens", "width", "height")  # numbers of a workload that may be 0
OF_TEXT = (
    "prompt_tokens", "image_tokens", "new_tokens", "context", "ttft_budget_s", "tok_budget_s",
)  # fmt: skip
OF_PICTURES = ("width", "height", "caption_tokens")
DRAFT_TOKENS = 4  # proposed a step by a model that drafts
ACCEPTED = 1.8  # of them, where nobody measured: a prior


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder. tokens: that it was trained on. loss: measured on held-out text, nats a token, at
    16 bits; score: measured at 16 bits on the frontier's task. probes: measured additions to the
    loss by bits, as {"4": 0.02}; healed: whether conversion will train at the target precision.
    accepted: measured means of accepted tokens, by the name of the model that drafts. kv_layers:
    those with keys and values of their own, 0 for all."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocabulary: int
    tokens: float
    tied: bool = True
    loss: float | None = None
    score: float | None = None
    probes: dict[str, float] = {}
    healed: bool = False
    accepted: dict[str, float] = {}
    linear_attention: float = 0.0
    kv_layers: int = 0

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(rows, inputs) of a layer's products: attention in and out, gate and up, down."""
        queries = self.heads * self.head_dim
        return (
            (queries + 2 * self.kv_heads * self.head_dim, self.width), (self.width, queries),
            (2 * self.ff, self.width), (self.width, self.ff),
        )  # fmt: skip

    @property
    def linear(self) -> float:
        """Parameters of all products but the head."""
        return float(self.layers * sum(m * n for m, n in self.matrices))

    @property
    def embedding(self) -> float:
        """Parameters of the embedding, and of the head where that is apart."""
        return float(self.vocabulary * self.width * (1 if self.tied else 2))

    @property
    def parameters(self) -> float:
        return self.linear + self.embedding


# Sizes of the published configs; tokens as the authors say (arXiv 2502.02737).
SMOLLM2 = (
    Card("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 2e12),
    Card("smollm2-360m", 32, 960, 15, 5, 64, 2560, 49152, 4e12),
    Card("smollm2-1.7b", 24, 2048, 32, 32, 64, 8192, 49152, 1.1e13),
)


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model has to do. Budgets in seconds, None: any. percentile: how sure a time must be
    to keep its budget. context: tokens that must fit. Of pictures total_budget_s is for each of
    them, batch for how many are asked at once; width, height: 0 for the bundle's own."""

    kind: Literal["chat", "vlm", "image"] = "chat"
    prompt_tokens: int = 512
    image_tokens: int = 0
    new_tokens: int = 128
    context: int = 2048
    ttft_budget_s: float | None = None
    tok_budget_s: float | None = None
    total_budget_s: float | None = None
    batch: int = 1
    percentile: float = 0.95
    width: int = 0
    height: int = 0
    caption_tokens: int = 12

    @property
    def prompt(self) -> int:
        return self.prompt_tokens + self.image_tokens


CARDS: Reader[tuple[Card, ...]] = Reader(tuple[Card, ...])
WORKLOAD = Reader(Workload)


def card_of(graph: Graph, name: str, *, tokens: float, **more: Any) -> Card:
    """The card of a decoder's graph, as of a bundle. Raises RequestError for other graphs."""
    states = [s for s in graph.states.values() if isinstance(s, KVState)]
    nodes = [n for n in graph.nodes if n.op in ("attention", "shared_attention")]
    embeds = [n.weights["weight"] for n in graph.nodes if n.op == "embed"]
    gates = [n for n in graph.nodes if n.op == "glu"]
    if not states or not nodes or not embeds or len(gates) != len(nodes):
        raise RequestError(
            f"{name} is no decoder of attention and gated networks, which is what is planned",
            code="plan-model",
            hint="describe it with a card",
        )
    attrs, shapes = nodes[0].attrs, graph.shapes()
    vocabulary, width = graph.weights[embeds[0]].shape
    head = [n for n in graph.nodes if n.op == "linear"][-1].weights["weight"]
    return Card(
        name, len(nodes), width, int(attrs["heads"]), int(attrs["kv_heads"]),
        int(attrs["head_dim"]), int(shapes[gates[0].output][-1]), vocabulary, tokens,
        head in embeds, kv_layers=len(states), **more,
    )  # fmt: skip


def read_cards(path: Path) -> tuple[Card, ...]:
    """Cards of a TOML file, one `[[model]]` each."""
    from ..budget.limits import read_toml

    found = read_toml(path, "plan-models")
    try:
        cards = CARDS.convert(found.get("model", ()))
        faults = [fault for card in cards for fault in card_faults(card)]
        faults += table_faults(found, "model", [card.name for card in cards])
        if len(set(card.name for card in cards)) < len(cards):
            faults.append("two cards have one name")
    except msgspec.ValidationError as error:
        faults = [str(error)[:300]]
        cards = ()
    if faults or not cards:
        raise RequestError(
            f"{path}: {'; '.join(faults[:8])}",
            code="plan-models",
            hint=f"a card holds {', '.join(Card.__struct_fields__[:9])}",
        )
    return cards


def table_faults(found: dict[str, Any], table: str, names: Sequence[str]) -> list[str]:
    """What is wrong with a file of `[[table]]` as a whole."""
    faults = [f"{printable(key)[:40]!r} is no table of it, expected [[{table}]] alone"
              for key in found if key != table]  # fmt: skip
    faults += [] if names else [f"no [[{table}]] in it"]
    faults += [f"{len(names)} of [[{table}]], expected at most {MOST}"] if len(names) > MOST else []
    faults += [
        f"a name is {printable(name)[:40]!r}, expected 1 to {NAME} printable characters without |"
        for name in names
        if not 0 < len(name) <= NAME or not name.isprintable() or "|" in name
    ]
    return faults


def card_faults(card: Card) -> list[str]:
    """What is wrong with a card's numbers."""
    sizes = ("layers", "width", "heads", "kv_heads", "head_dim", "ff", "vocabulary", "tokens")
    values = {name: getattr(card, name) for name in sizes}
    values |= {f"probes.{bits}": value for bits, value in card.probes.items()}
    out = [
        f"{card.name}: {name} is {value:g}, expected more than 0, at most {LARGEST:g}"
        for name, value in values.items()
        if not 0 < value <= LARGEST
    ]
    out += [
        f"{card.name}: probes has {b[:20]!r}, expected bits from 2 to 16"
        for b in card.probes
        if b not in map(str, range(2, 17))
    ]
    if card.kv_heads > 0 and card.heads % card.kv_heads:
        out.append(f"{card.name}: {card.heads} heads do not share {card.kv_heads} kv_heads evenly")
    out += [
        f"{card.name}: accepted.{name} is {value}, expected 0 to {DRAFT_TOKENS}"
        for name, value in card.accepted.items()
        if not 0 <= value <= DRAFT_TOKENS
    ]
    if card.loss is not None and not 0 < card.loss <= LARGEST:
        out.append(f"{card.name}: loss is {card.loss}, expected more than 0, at most {LARGEST:g}")
    if card.score is not None and not 0 <= card.score <= 1:
        out.append(f"{card.name}: score is {card.score}, expected 0 to 1")
    if not 0 <= card.linear_attention <= 1:
        out.append(f"{card.name}: linear_attention is {card.linear_attention}, expected a share")
    if not 0 <= card.kv_layers <= max(0, card.layers):
        out.append(f"{card.name}: kv_layers is {card.kv_layers}, expected 0 to {card.layers}")
    return out


def workload_of(values: dict[str, Any], where: str = "the workload") -> Workload:
    """A workload by name. Raises RequestError."""
    try:
        found = WORKLOAD.convert(values)
        faults = [
            f"{name} is {value}, expected {'0' if name in ABSENT else '1'} to {1 << 24}"
            for name in (*COUNTS, *ABSENT)
            if not (0 if name in ABSENT else 1) <= (value := getattr(found, name)) <= 1 << 24
        ]
        faults += [
            f"{name} is {value}, expected {LEAST_S:g} to {MOST_S:g} seconds"
            for name in ("ttft_budget_s", "tok_budget_s", "total_budget_s")
            if (value := getattr(found, name)) is not None and not LEAST_S <= value <= MOST_S
        ]
        drawn = found.kind == "image"
        faults += [
            f"{name} is of {'text' if drawn else 'pictures'}, kind is {found.kind!r}"
            for name in (OF_TEXT if drawn else OF_PICTURES)
            if name in values
        ]
        if not 0.5 <= found.percentile < 1:
            faults.append(f"percentile is {found.percentile}, expected 0.5 to less than 1")
        if not drawn and found.prompt + found.new_tokens > found.context:
            faults.append(
                f"{found.prompt} tokens of prompt and {found.new_tokens} new ones do not fit a "
                f"context of {found.context}"
            )
    except msgspec.ValidationError as error:
        faults = [str(error)[:300]]
    if faults:
        raise RequestError(
            f"{where}: {'; '.join(faults)}", code="workload",
            hint=f"a workload holds {', '.join(Workload.__struct_fields__)}",
        )  # fmt: skip
    return found
