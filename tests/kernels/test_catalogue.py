"""Every op of the catalogue: reference, torch implementation, ONNX emission and CPU kernel agree.

An op is a graph of its own: float rows go straight in, its rows come straight out. Ops without a
state run as functions, ops with one step by step. A face that is missing fails here; none is
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import sparse
from edgert.kernels.cpu.layout import GROUP
from edgert.kernels.encodings import ENCODINGS, quantize
from edgert.kernels.ops import ACTIVATIONS, CATALOGUE
from edgert.kernels.quant import Matrix
from edgert.kernels.states import BorrowedState, KVState
from numpy.typing import NDArray

from edgert.errors import ConvertError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import ort_session
from .cases_experts import cases as expert_cases
from .cases_grid import cases as grid_cases
from .cases_linear import CASES as LINEAR
from .cases_recurrent import CASES as RECURRENT
from .cases_rows import CASES as ROWS

CONTEXT = 1024
EXACT = 2e-5  # the same formula in float32, summed in another order
CODES = 2e-3  # ... with activations quantized: a value on the edge may take the next code
FLOATS = 2e-2  # float activations against quantized ones
HALF = 4e-3  # float16 activations
F32 = NDArray[np.float32]
PRODUCTS = {"linear": "weight", "conv2d": "weight", "experts": "down", "head_linear": "weight"}


@dataclass(frozen=True)
class Case:
    """One op with its weights and attributes, and the width of the rows it reads.

    inputs: rows (a number or a symbol) and width of inputs that are not [T, width]. sizes: rows of
    those symbols.
    """

    op: str
    width: int
    rows: int = 63
    weights: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    inputs: dict[str, tuple[int | str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op}-{self.label}-{self.rows}x{self.width}"

    @property
    def quantized(self) -> bool:
        slot = PRODUCTS.get(self.op)
        return slot is not None and ENCODINGS[self.weights[slot][1]].blocks is not None


def _linear(encoding: str, n: int, k: int, rows: int, *, bias: bool = False) -> Case:
    weights: dict[str, tuple[tuple[int, ...], str]] = {"weight": ((n, k), encoding)}
    if bias:
        weights["bias"] = ((n,), "f32")
    return Case("linear", k, rows, weights, label=f"{encoding}{'-bias' * bias}-{n}")


def _attention(
    heads: int, kv: int, size: int, pairs: int, rows: int, label: str, **more: Any
) -> Case:
    """more: attributes, and `norm`, `long` or `sinks` to give those weights."""
    weights: dict[str, tuple[tuple[int, ...], str]] = {}
    if more.pop("norm", False):
        weights |= {slot: ((size,), "f32") for slot in ("q_norm", "k_norm")}
    if pairs:
        weights["inv_freq"] = ((pairs,), "f32")
    if more.pop("long", False):
        weights["inv_freq_long"] = ((pairs,), "f32")
    if more.pop("sinks", False):
        weights["sinks"] = ((heads,), "f32")
    attrs = {"heads": heads, "kv_heads": kv, "head_dim": size, "scale": size**-0.5, **more}
    return Case("attention", (heads + 2 * kv) * size, rows, weights, attrs, label)


def _shared(heads: int, kv: int, size: int, pairs: int, rows: int, label: str, **more: Any) -> Case:
    """A second node that reads the pages which `attention` writes: rows [qkv of the owner | q]."""
    owner = _attention(heads, kv, size, pairs, rows, label, **more)
    weights = {slot: spec for slot, spec in owner.weights.items() if slot != "k_norm"}
    return Case("shared_attention", heads * size, rows, weights, owner.attrs, label)


SIZES = (1, 63, 500, 1000)
# Those without a CPU kernel: tests/converters/quantize/test_formats.py.
EVERYWHERE = ["f32", "f16", "int8-g32", "int4-g32"]  # on every executor
# All bits and groups, with and without zero codes; test_planes.py has the other combinations.
STORED = [*EVERYWHERE, "int8-channel", "int2-g64", "uint2-g32", "int3-g32", "uint3-g64",
          "int4-g128", "uint4-g64", "int5-g64", "uint5-g128", "int6-g128", "uint6-g32"]  # fmt: skip
CASES: dict[str, list[Case]] = {
    "embed": [
        Case("embed", c, 63, {"weight": ((90, c), e)}, {"scale": scale}, label=e)
        for e in STORED
        for c, scale in ((64, 1.0), (63, 1.0), (500, 22.4))
    ],
    "rms_norm": [
        Case("rms_norm", c, rows, {"weight": ((c,), "f32")}, {"eps": 1e-5})
        for c, rows in ((1, 3), (63, 63), (500, 1), (1000, 500))
    ],
    "linear": [
        _linear(encoding, *sizes)
        for encoding in STORED
        for sizes in ((63, 1, 5), (500, 63, 63), (1000, 500, 1), (63, 1000, 500))
    ]
    + [_linear(encoding, 96, 64, 7, bias=True) for encoding in STORED]
    + [
        _linear(f"sparse{bits}-s{-(-k // share)}", n, k, rows, bias=n == 96)
        for bits in sparse.BITS
        for share in (2, 15)  # in their dense form, and with indices
        for n, k, rows in ((500, 63, 63), (63, 1000, 500), (96, 64, 1))
    ],
    "attention": [
        _attention(4, 2, 16, 8, 63, "plain"),
        _attention(3, 3, 64, 32, 500, "heads-alike"),
        _attention(4, 1, 16, 8, 1000, "one-kv-head", window=63),
        _attention(4, 2, 16, 8, 1, "one-row"),
        _attention(4, 2, 8, 4, 63, "narrow"),
        _attention(3, 1, 20, 10, 63, "odd-head"),
        _attention(4, 2, 32, 12, 63, "partial-rotary"),
        _attention(4, 2, 32, 8, 63, "partial-rotary-8"),
        _attention(4, 2, 16, 0, 63, "no-rotary"),
        _attention(4, 2, 16, 8, 63, "norms", norm=True, qk_eps=1e-5),
        _attention(4, 2, 16, 8, 63, "norms-last", norm=True, norm_last=True),
        _attention(4, 2, 24, 10, 63, "norms-last-partial", norm=True, norm_last=True),
        _attention(4, 2, 16, 8, 63, "softcap", softcap=2.0),
        _attention(4, 2, 16, 8, 63, "window-1", window=1),
        _attention(4, 2, 16, 8, 500, "sinks", sinks=True),
        _attention(6, 2, 32, 12, 63, "sinks-window", sinks=True, window=17),
        _attention(4, 2, 16, 8, 63, "growing", rope_growth=4.0, rope_length=20),
        _attention(4, 2, 20, 6, 500, "growing-partial", rope_growth=2.5, rope_length=100),
        _attention(4, 2, 24, 12, 63, "all", norm=True, softcap=3.0, window=17, rope_scale=1.3),
        _attention(
            4, 2, 16, 8, 63, "long-rope-short",
            long=True, rope_switch=100, rope_scale=1.1, rope_long_scale=1.2,
        ),
        _attention(
            4, 2, 16, 8, 63, "long-rope-long",
            long=True, rope_switch=50, rope_scale=1.1, rope_long_scale=1.2,
        ),
    ],
    "shared_attention": [
        _shared(4, 2, 16, 8, 63, "plain"),
        _shared(4, 1, 64, 32, 500, "window", window=63, softcap=2.0),
        _shared(3, 1, 20, 10, 63, "odd-head", norm=True),
        _shared(4, 2, 16, 8, 63, "norms-last", norm=True, norm_last=True),
        _shared(4, 2, 16, 0, 1, "one-row"),
        _shared(4, 2, 16, 8, 63, "sinks", sinks=True),
    ],
    "add_learned_positions": [
        Case("add_learned_positions", c, rows, {"weight": ((CONTEXT, c), "f32")})
        for c, rows in ((1, 5), (63, 63), (500, 1000), (64, 1))
    ],
    "scale_by_position": [
        Case(
            "scale_by_position", c, rows, {"weight": ((-(-CONTEXT // every),), "f32")},
            {"every": every, "width": width}, f"{every}-{width}",
        )
        for c, rows, every, width in (
            (1, 5, 1, 1), (63, 63, 16, 63), (500, 500, 100, 37), (96, 1000, 1000, 64),
        )
    ],
    "glu": [
        Case("glu", 2 * f, rows, attrs={"act": act}, label=act)
        for act in ACTIVATIONS
        for f, rows in ((1, 5), (63, 63), (500, 1))
    ],
    "add": [Case("add", c, rows) for c, rows in ((1, 5), (63, 63), (1000, 1))],
    "select": [Case("select", c, rows) for c, rows in ((63, 63), (500, 1))],
    "softcap": [
        Case("softcap", c, rows, attrs={"cap": 3.0}) for c, rows in ((63, 63), (500, 1), (1, 5))
    ],
}  # fmt: skip
CASES |= {op: [Case(op, **spec) for spec in specs] for op, specs in ROWS.items()}
CASES |= {op: [Case(op, **spec) for spec in specs] for op, specs in RECURRENT.items()}
CASES |= {op: [Case(op, **spec) for spec in specs] for op, specs in LINEAR.items()}
CASES |= {
    op: [Case(op, **spec) for spec in specs]
    for op, specs in expert_cases(EVERYWHERE, STORED).items()
}
CASES |= {op: [Case(op, **spec) for spec in specs] for op, specs in grid_cases(STORED).items()}
ALL = [case for cases in CASES.values() for case in cases]


def _stored(rng: np.random.Generator, shape: tuple[int, ...], encoding: str, slot: str) -> Matrix:
    if slot.startswith("inv_freq"):
        base = 500.0 if slot == "inv_freq" else 90.0
        return (base ** (-np.arange(shape[0]) / shape[0])).astype(np.float32)
    dense = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    if len(shape) == 1:
        return 1 + dense
    if form := sparse.parse(encoding):
        order = np.abs(dense).argsort(axis=1).argsort(axis=1)
        return sparse.quantize(dense, order >= shape[1] - form.count, form.bits)
    return quantize(dense, encoding)


def build(case: Case) -> tuple[Graph, dict[str, Matrix]]:
    """The op alone, with random weights; shared_attention after the owner of its pages."""
    rng = np.random.default_rng(len(case.name))
    op = CATALOGUE[case.op]
    weights = {slot: Weight(shape, encoding) for slot, (shape, encoding) in case.weights.items()}
    stored = {
        slot: _stored(rng, shape, encoding, slot)
        for slot, (shape, encoding) in case.weights.items()
    }
    attrs = op.check_attrs(case.attrs)
    inputs = [
        Value(name, ("R" if name == "rows" else "T",), "int32")
        if name in op.integer
        else Value(
            name,
            case.inputs.get(name, (case.rows if "height" in op.attrs else "T", case.width)),
        )
        for name in op.inputs
    ]
    nodes = [Node(case.op, op.inputs, "y", {s: s for s in weights}, case.attrs)]
    states: dict[str, Any] = {}
    if op.state_of is not None:
        nodes = [Node(case.op, op.inputs, "y", {s: s for s in weights}, case.attrs, "kv")]
        states["kv"] = op.state_of(attrs)
    if op.reach is not None:  # rows stand in a sequence where something remembers it
        inputs.append(Value("qkv", ("T", 48)))
        size = {"heads": 1, "kv_heads": 1, "head_dim": 16, "scale": 0.25}
        nodes.append(Node("attention", ("qkv",), "owned", {}, size, "kv"))
        states["kv"] = KVState(1, 16)
    if op.borrows:
        width = (attrs["heads"] + 2 * attrs["kv_heads"]) * attrs["head_dim"]
        inputs.insert(0, Value("qkv", ("T", width)))
        rotary = {s: s for s in weights if s.startswith(("inv_freq", "sinks"))}
        plain = {key: value for key, value in case.attrs.items() if key != "norm_last"}
        owner = Node("attention", ("qkv",), "owned", rotary, plain, "kv")
        nodes = [owner, Node(case.op, op.inputs, "y", {s: s for s in weights}, case.attrs, "lent")]
        states["lent"] = BorrowedState("kv")
    context = CONTEXT if states else 0
    graph = Graph("op", tuple(inputs), (), tuple(nodes), weights, states, context)
    shapes = graph.shapes()
    outputs = tuple(Value(n, shapes[n]) for n in sorted(n.output for n in nodes)[::-1])
    return graph.replace(outputs=outputs), stored


Arrays = dict[str, NDArray[Any]]


def arrays_of(case: Case, graph: Graph) -> Arrays:
    """Random inputs: tokens of the table, selected rows, float rows."""
    rng = np.random.default_rng(7)
    bounds = graph.index_bounds()
    arrays: Arrays = {}
    for value in graph.inputs:
        if value.dtype == "f32":
            rows = {"T": case.rows, **case.sizes}.get(str(value.shape[0]), value.shape[0])
            shape = (int(rows), int(value.shape[1]))
            arrays[value.name] = rng.standard_normal(shape).astype(np.float32)
            if case.op == "timestep":
                arrays[value.name] = rng.integers(0, 1000, shape).astype(np.float32)
        else:
            below = min(case.rows if n == "T" else int(n) for n in bounds[value.name])
            count = case.rows + 5 if value.name == "rows" else case.rows
            arrays[value.name] = rng.integers(0, below, count).astype(np.int32)
    return arrays


def run(session: Session, arrays: Arrays) -> F32:
    """All rows: as a function, or with a state the larger part as one step and the rest in one, so
    that caches are read."""
    graph = session.graph
    if not graph.states:
        out = session.run(arrays)[graph.outputs[0].name]
        session.close()
        return out
    rows = len(next(iter(arrays.values())))
    state, parts = session.new_state(expected=rows), []
    for span in np.split(np.arange(rows), [rows - rows // 3]):
        if len(span):
            feed = Feed(state, logits="all", inputs={n: a[span] for n, a in arrays.items()})
            parts.append(session.step([feed])[0].logits)
            state.commit(len(span))
    session.close()
    return np.concatenate(parts)


class _Poisoned:
    """NumPy whose `empty` is full of NaN, or of 0x5B bytes for integers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any = np.float64, **more: Any) -> Any:
        array = np.empty(shape, dtype, **more)
        array.view(np.uint8).fill(0x5B) if array.dtype.kind in "iu" else array.fill(np.nan)
        return array


def _poisoned_reserve(size: int) -> NDArray[np.uint8]:
    """Reserved memory as an earlier use may leave it: NaN as float32, -1 as int64."""
    return np.full(size, 0xFF, np.uint8)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory of sessions and references is poison: arenas, scratch, outputs, pages
    (compiled modules keep NumPy)."""
    from edgert.kernels import quant

    from edgert.session import pages, program, recurrent

    monkeypatch.setattr(quant, "np", _Poisoned())
    for module in (program, pages, recurrent):
        monkeypatch.setattr(module, "reserve", _poisoned_reserve)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Executor = Callable[[Graph, Mapping[str, Any], Arrays, Path], F32]


def _torch(graph: Graph, weights: Mapping[str, Any], arrays: Arrays, _: Path) -> F32:
    given = {
        name: torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int64))
        for name, array in arrays.items()
    }
    batch = {n: x if n == "rows" else x[None] for n, x in given.items()}
    with torch.no_grad():
        out = TorchGraph(graph, weights).run(batch)
    return out[graph.outputs[0].name][0].numpy()


def _onnx(variant: Variant) -> Executor:
    def execute(graph: Graph, weights: Mapping[str, Any], arrays: Arrays, folder: Path) -> F32:
        return run(ort_session(graph, weights, folder, variant, max_rows=CONTEXT), arrays)

    return execute


def _cpu(threads: int) -> Executor:
    def execute(graph: Graph, weights: Mapping[str, Any], arrays: Arrays, _: Path) -> F32:
        return run(CpuSession(graph, weights, threads=threads, max_rows=CONTEXT), arrays)

    return execute


# executor, tolerance, tolerance where a product's activations are quantized in the reference
EXECUTORS: dict[str, tuple[Executor, float, float]] = {
    "torch": (_torch, EXACT, FLOATS),
    "onnx": (_onnx(Variant()), EXACT, CODES),
    "onnx-half": (_onnx(Variant(half=True)), HALF, FLOATS),
    "onnx-standard": (_onnx(Variant(standard=True)), EXACT, FLOATS),
    "cpu-1": (_cpu(1), EXACT, CODES),
    "cpu-2": (_cpu(2), EXACT, CODES),
    "cpu-3": (_cpu(3), EXACT, CODES),
}


def test_every_op_has_cases_and_faces() -> None:
    assert set(CASES) == set(CATALOGUE)
    for op in CATALOGUE.values():
        assert callable(op.reference)
        assert callable(op.onnx), op.name
        encodings = {c.weights[slot][1] for c in CASES[op.name] for slot in op.matrix}
        fixed = {name for name in encodings if not sparse.parse(name)}
        assert not op.matrix or fixed == set(STORED)
    assert {case.rows for case in ALL} >= set(SIZES)
    assert {case.width for case in ALL} >= set(SIZES)


def test_names_are_unique() -> None:
    assert len({case.name for case in ALL}) == len(ALL)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_agrees_with_reference(case: Case, executor: str, tmp_path: Path) -> None:
    graph, weights = build(case)
    arrays = arrays_of(case, graph)
    expected = run(ReferenceSession(graph, weights, max_rows=CONTEXT), arrays)
    execute, plain, quantized = EXECUTORS[executor]
    encodings = {encoding for _, encoding in case.weights.values()}
    try:
        got = execute(graph, weights, arrays, tmp_path)
    except ConvertError as error:  # no such emission: a refusal by name, and not of these four
        refusal = error.code
    else:
        refusal = ""
    if refusal:
        assert (refusal, executor.partition("-")[0]) == ("onnx-weights", "onnx")
        assert not encodings <= set(EVERYWHERE)
        return
    if executor == "onnx" and max((ENCODINGS[n].group for n in encodings), default=0) > GROUP:
        quantized = (
            FLOATS  # MatMulNBits rounds activations in blocks as large as the weights' groups
        )
    by_rows = any(ENCODINGS[n].channels for n in encodings)
    if executor == "onnx" and (by_rows or case.op in ("conv2d", "experts", "head_linear")):
        quantized = FLOATS  # weights are dequantized, activations stay float
    limit = quantized if case.quantized else plain
    assert_close(f"{case.name} {executor}", expected, got, rms=limit)


def test_poison_is_seen() -> None:
    assert np.isnan(_Poisoned.empty(3)).all()
    assert (_Poisoned.empty(3, np.uint8) == 0x5B).all()
    assert np.isnan(_poisoned_reserve(8).view(np.float32)).all()


def test_poison_reaches_the_arena() -> None:
    graph, weights = build(CASES["add"][0])
    session = CpuSession(graph, weights, threads=1)
    session.run(arrays_of(CASES["add"][0], graph))
    program = list(session._programs.values())[-1]
    assert np.isnan(program.arena[-4:].view(np.float32)).all()
    session.close()
