"""The row of the catalogue that a mixture of experts is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need

EXPERT_ACTS = ("silu", "gelu", "gelu_tanh", "quick_gelu")
EXPERTS = 1024  # of a layer, at most
ACTIVE = 64  # of them that a token reads, at most
WHOLE = 16  # rows of an expert's matrices come in groups of as many


def _infer(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    (x, logits), count, active = inputs, attrs["experts"], attrs["active"]
    need(1 <= count <= EXPERTS, f"experts: {count} experts, expected 1 to {EXPERTS}")
    most = min(count, ACTIVE)
    need(1 <= active <= most, f"experts: {active} of {count} are active, expected 1 to {most}")
    need(
        len(logits) == len(x) == 2 and logits == (x[0], count),
        f"experts: rows {x} with logits {logits}, expected a row of {count} for each",
    )
    both, down = weights["gate_up"], weights["down"]
    need(
        len(both) == len(down) == 2 and both[1] == x[1] and both[0] == 2 * count * down[1],
        f"experts: gate_up {both} and down {down} for rows of {x[1]} and {count} experts, expected "
        f"[2 * {count} * F, {x[1]}] and [{count} * C, F]",
    )
    need(down[0] == count * int(x[1]), f"experts: down {down}, expected [{count} * {x[1]}, F]")
    need(
        down[1] % WHOLE == 0 and int(x[1]) % WHOLE == 0,
        f"experts: rows of {x[1]} and experts of {down[1]}, expected multiples of {WHOLE}",
    )
    for slot, matrix in (("gate_up_bias", both), ("down_bias", down)):
        found = weights.get(slot, matrix[:1])
        need(found == matrix[:1], f"experts: {slot} {found}, expected {matrix[:1]}")
    act = attrs["act"]
    need(act in EXPERT_ACTS, f"experts: act is {act!r}, expected one of {EXPERT_ACTS}")
    need(attrs["scale"] > 0, f"experts: scale is {attrs['scale']}, expected > 0")
    need(attrs["limit"] >= 0, f"experts: limit is {attrs['limit']}, expected >= 0")
    return (x[0], x[1])


EXPERT: tuple[Op, ...] = (
    Op(
        "experts", "experts", ("x", "logits"), _infer,
        weights={"gate_up": True, "down": True, "gate_up_bias": False, "down_bias": False},
        matrix=("gate_up", "down"),
        attrs={
            "experts": Attr(int), "active": Attr(int), "normalised": Attr(bool, True),
            "scale": Attr(float, 1.0), "act": Attr(str), "limit": Attr(float, 0.0),
            "shift": Attr(float, 0.0),
        },
    ),
)  # fmt: skip
