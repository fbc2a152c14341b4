"""The row of the catalogue that linear attention is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need
from .ops_text import check_growth
from .states import RecurrentState, StateSpec

# What is made of x = s q . k: x^2, (x + beta)^2 + gamma, x without a normaliser and with steps dt
# on the values, x of features that are not negative, e^x, which no state of a fixed size can sum.
MODES = ("square", "shifted", "mamba2s", "relu", "2mamba-e")
EXP = MODES[-1]
EVERY = 1 << 40  # tokens: a tail that is never folded
CHUNKS = range(16, 257)
FEATURES = 256  # r at most: what a head's state takes grows with its square
SHARE = 48  # query heads of a key/value head that the kernels take


def feature_width(features: int, mode: str) -> int:
    """D, how many features phi(u) of a vector u of r = `features` values has; 1 for EXP, whose
    tokens are all kept."""
    if mode == EXP:
        return 1
    if mode in ("mamba2s", "relu"):
        return features
    more = int(mode == "shifted")
    return (features + more) * (features + more + 1) // 2


def padded(size: int) -> int:
    """Columns of a head's values in memory: a multiple of 16."""
    return -(-size // 16) * 16


def gate_width(attrs: Attrs) -> int:
    """Gates of a token: a decay and, with `mamba2s`, a step for each key/value head."""
    gates = int(attrs["decay"]) + int(attrs["mode"] == "mamba2s")
    return int(attrs["kv_heads"]) * gates


def row_width(attrs: Attrs) -> int:
    """float32 values that a token leaves in the tail: keys [G, r], values [G, D padded to 16],
    logarithms of decays [G], and with a window the keys that it reads [G, D]."""
    width = int(attrs["features"]) + padded(attrs["head_dim"]) + 1
    width += int(attrs["head_dim"]) if attrs["window"] else 0
    return int(attrs["kv_heads"]) * width


def _infer(inputs: Sequence[Shape], weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> Shape:
    qkv, gates = inputs
    heads, groups, size, features = (
        attrs[key] for key in ("heads", "kv_heads", "head_dim", "features")
    )
    name, mode = "linear_attention", attrs["mode"]
    need(min(heads, groups, size, features) > 0, f"{name}: heads {heads}/{groups}, size {size}")
    need(features <= FEATURES, f"{name}: {features} features, expected at most {FEATURES}")
    need(heads % groups == 0, f"{name}: {heads} heads are no multiple of {groups} kv heads")
    need(heads // groups <= SHARE, f"{name}: {heads // groups} heads share a key, at most {SHARE}")
    width = (heads + 2 * groups) * size
    need(qkv[-1] == width, f"{name}: rows of {qkv[-1]}, expected {width}")
    need(qkv[0] == gates[0] == "T", f"{name}: {qkv[0]} and {gates[0]} rows, expected T")
    need(mode in MODES, f"{name}: mode is {mode!r}, expected one of {MODES}")
    need(attrs["chunk"] in CHUNKS, f"{name}: chunk is {attrs['chunk']}, expected 16 to 256")
    wanted = gate_width(attrs)
    need(wanted in (0, gates[-1]), f"{name}: gates of {gates[-1]}, expected {wanted}")
    plain = mode not in ("mamba2s", EXP)
    need(plain or not attrs["window"], f"{name}: a window with mode {mode!r}")
    need(attrs["eps"] >= 0 and attrs["scale"] > 0, f"{name}: eps and scale, expected 0 or more")
    _weights(weights, attrs)
    return (qkv[0], heads * size)


def _weights(weights: Mapping[str, tuple[int, ...]], attrs: Attrs) -> None:
    groups, size, features = (attrs[key] for key in ("kv_heads", "head_dim", "features"))
    shapes = {
        "q_norm": (size,), "k_norm": (size,), "key_mean": (groups, size), "beta": (groups,),
        "gamma": (groups,), "q_map": (groups * size, features), "k_map": (groups * size, features),
        "log_window": (attrs["heads"],),
    }  # fmt: skip
    for slot, shape in shapes.items():
        found = weights.get(slot, shape)
        need(found == shape, f"linear_attention: {slot} {found}, expected {shape}")
    for one, other in (("q_norm", "k_norm"), ("q_map", "k_map"), ("beta", "gamma")):
        both = (one in weights) == (other in weights)
        need(both, f"linear_attention: only one of {one}, {other}")
    shifted = attrs["mode"] == "shifted"
    need(("beta" in weights) == shifted, "linear_attention: beta and gamma belong to mode shifted")
    window = bool(attrs["window"])
    need(("log_window" in weights) == window, "linear_attention: log_window belongs to a window")
    need("q_map" in weights or features == size, "linear_attention: fewer features need q_map")
    axes, pairs = attrs["rope_axes"], weights.get("inv_freq", (0,))
    count = pairs[0]
    need(len(pairs) == 1 and 2 * count <= size, f"linear_attention: inv_freq {pairs}, head {size}")
    need(
        not axes or (len(axes) == count and set(axes) <= set("012")),
        f"linear_attention: rope_axes {axes!r}, expected 0, 1 or 2 for each of {count} frequencies",
    )
    check_growth("linear_attention", weights, attrs)
    if "inv_freq_long" in weights:
        same = pairs == weights["inv_freq_long"] and attrs["rope_switch"] > 0
        need(same, "linear_attention: long rope needs inv_freq and rope_switch")


def _state(attrs: Attrs) -> StateSpec:
    size, mode = attrs["head_dim"], attrs["mode"]
    return RecurrentState(
        attrs["kv_heads"],
        feature_width(attrs["features"], mode),
        padded(size),
        normaliser=mode not in ("mamba2s", EXP),
        tail=EVERY if mode == EXP else 2 * attrs["chunk"],
        tail_width=row_width(attrs),
    )


LINEAR: tuple[Op, ...] = (
    Op(
        "linear_attention", "linear_attention", ("qkv", "gates"), _infer,
        weights=dict.fromkeys(
            ("q_norm", "k_norm", "inv_freq", "inv_freq_long", "key_mean", "q_map", "k_map",
             "beta", "gamma", "log_window"), False,
        ),
        attrs={
            "heads": Attr(int), "kv_heads": Attr(int), "head_dim": Attr(int),
            "features": Attr(int), "mode": Attr(str), "scale": Attr(float),
            "decay": Attr(bool, True), "chunk": Attr(int, 64), "eps": Attr(float, 0.0),
            "qk_eps": Attr(float, 1e-6), "rope_scale": Attr(float, 1.0),
            "rope_long_scale": Attr(float, 1.0), "rope_switch": Attr(int, 0),
            "rope_axes": Attr(str, ""), "window": Attr(bool, False),
            "rope_growth": Attr(float, 0.0), "rope_length": Attr(int, 0),
        },
        state_of=_state,
    ),
)  # fmt: skip
