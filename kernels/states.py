"""Per-sequence memory that ops own: what each kind holds, as it stands in a graph.

A node that remembers names a state of its graph; the op says which state that must be
(`Op.state_of`). How the memory is kept is the session's affair: pages for the paged kinds, one slot
a sequence for the others.

kv           keys and values of every token, in pages; rewinds to any length
latent       one row of every token that is key and values at once, in pages like those of kv
block-stats  a few rows for each block of tokens, beside the pages; rewinds with them
recurrent    a matrix, a normaliser, the last tokens not yet folded in; rewinds within these
conv         the last inputs of a causal convolution; rewinds within the inputs kept
borrowed     nothing: reads the keys and values of another node, and follows their owner
"""

from __future__ import annotations

import msgspec


class KVState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="kv", tag_field="kind"):
    """Keys and values of G = kv_heads heads of size D = head_dim, for every token. window: how
    many tokens the owner looks back, 0 for all."""

    kv_heads: int
    head_dim: int
    window: int = 0


class LatentState(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="latent", tag_field="kind"
):
    """One row of `size` channels for every token: the key of all heads, whose last channels are
    their values (latent attention, arXiv 2405.04434)."""

    size: int


class BlockStatsState(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="block-stats", tag_field="kind"
):
    """`rows` float32 vectors [G, D] for each block of `block` tokens (means, minima, ...)."""

    kv_heads: int
    head_dim: int
    block: int
    rows: int = 1


class RecurrentState(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="recurrent", tag_field="kind"
):
    """A float32 matrix [heads, key_dim, value_dim], with `normaliser` a vector [heads, key_dim].

    tail: fewer tokens than this stay unfolded, as float32 rows of `tail_width` values, so that
    speculative tokens are taken back by shortening the tail. Whenever there are as many, the oldest
    `chunk` of them are folded.
    """

    heads: int
    key_dim: int
    value_dim: int
    normaliser: bool = False
    tail: int = 0
    tail_width: int = 0

    @property
    def chunk(self) -> int:
        """Tokens that are folded at once."""
        return max(1, self.tail // 2)


class ConvState(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="conv", tag_field="kind"
):
    """The last `width` - 1 float32 rows [channels] that a causal convolution saw, and `tail` more,
    so that as many tokens can be taken back."""

    channels: int
    width: int
    tail: int = 0


class BorrowedState(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="borrowed", tag_field="kind"
):
    """Read access to the keys and values of `owner`, a kv state of the same graph, or of the part
    `part` of the same bundle."""

    owner: str
    part: str = ""


def folded(spec: RecurrentState, length: int) -> int:
    """How many of a sequence's first `length` tokens are in its matrix: all without a tail, else
    whole chunks, with less than `tail` left."""
    if not spec.tail:
        return length
    return spec.chunk * max(0, (length - spec.tail) // spec.chunk + 1)


StateSpec = KVState | LatentState | BlockStatsState | RecurrentState | ConvState | BorrowedState


def faults(spec: StateSpec) -> list[str]:
    """What is wrong with a state by itself: sizes that are not positive."""
    if isinstance(spec, BorrowedState):
        return [] if spec.owner else ["owner is empty"]
    zero_allowed = {"window", "tail", "tail_width", "normaliser"}
    values = {name: getattr(spec, name) for name in spec.__struct_fields__}
    wrong = [
        f"{name} is {value}, expected {'0 or more' if name in zero_allowed else '1 or more'}"
        for name, value in values.items()
        if value < (0 if name in zero_allowed else 1)
    ]
    if isinstance(spec, RecurrentState) and (spec.tail > 0) != (spec.tail_width > 0):
        wrong.append(f"tail is {spec.tail} and tail_width {spec.tail_width}, expected both or none")
    return wrong
