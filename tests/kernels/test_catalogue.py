"""Every op of the catalogue: reference, torch implementation, ONNX emission and CPU kernel agree.

An op runs inside the smallest graph that can feed it: an f32 table whose rows are the op's input,
the op, and a selection of rows. A face that is missing fails here; none is skipped.
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
from edgert.kernels.ops import ACTIVATIONS, CATALOGUE, MATRIX_ENCODINGS
from edgert.kernels.quant import Matrix, quantize_int4, quantize_int8
from numpy.typing import NDArray

from edgert.graph import Graph, Node, State, Value, Weight
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import ort_session

CONTEXT = 1024
EXACT = 2e-5  # the same formula in float32, summed in another order
CODES = 2e-3  # ... with activations quantized: a value on the edge may take the next code
FLOATS = 2e-2  # float activations against quantized ones
HALF = 4e-3  # float16 activations
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One op with its weights and attributes, and the width of the rows it reads."""

    op: str
    width: int
    rows: int = 63
    weights: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.op}-{self.label}-{self.rows}x{self.width}"

    @property
    def quantized(self) -> bool:
        return self.op == "linear" and self.weights["weight"][1] not in ("f32", "f16")


def _linear(encoding: str, n: int, k: int, rows: int, *, bias: bool = False) -> Case:
    weights: dict[str, tuple[tuple[int, ...], str]] = {"weight": ((n, k), encoding)}
    if bias:
        weights["bias"] = ((n,), "f32")
    return Case("linear", k, rows, weights, label=f"{encoding}{'-bias' * bias}-{n}")


def _attention(
    heads: int, kv: int, size: int, pairs: int, rows: int, label: str, **more: Any
) -> Case:
    """more: attributes, and `norm` or `long` to give those weights."""
    weights: dict[str, tuple[tuple[int, ...], str]] = {}
    if more.pop("norm", False):
        weights |= {slot: ((size,), "f32") for slot in ("q_norm", "k_norm")}
    if pairs:
        weights["inv_freq"] = ((pairs,), "f32")
    if more.pop("long", False):
        weights["inv_freq_long"] = ((pairs,), "f32")
    attrs = {"heads": heads, "kv_heads": kv, "head_dim": size, "scale": size**-0.5, **more}
    return Case("attention", (heads + 2 * kv) * size, rows, weights, attrs, label)


SIZES = (1, 63, 500, 1000)
CASES: dict[str, list[Case]] = {
    "embed": [
        Case("embed", c, 63, {"weight": ((90, c), e)}, {"scale": scale}, label=e)
        for e in MATRIX_ENCODINGS
        for c, scale in ((64, 1.0), (63, 1.0), (500, 22.4))
    ],
    "rms_norm": [
        Case("rms_norm", c, rows, {"weight": ((c,), "f32")}, {"eps": 1e-5})
        for c, rows in ((1, 3), (63, 63), (500, 1), (1000, 500))
    ],
    "linear": [
        _linear(encoding, *sizes)
        for encoding in MATRIX_ENCODINGS
        for sizes in ((63, 1, 5), (500, 63, 63), (1000, 500, 1), (63, 1000, 500))
    ]
    + [_linear(encoding, 96, 64, 7, bias=True) for encoding in MATRIX_ENCODINGS],
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
        _attention(4, 2, 16, 8, 63, "softcap", softcap=2.0),
        _attention(4, 2, 16, 8, 63, "window-1", window=1),
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
ALL = [case for cases in CASES.values() for case in cases]


def _stored(rng: np.random.Generator, shape: tuple[int, ...], encoding: str, slot: str) -> Matrix:
    if slot.startswith("inv_freq"):
        base = 500.0 if slot == "inv_freq" else 90.0
        return (base ** (-np.arange(shape[0]) / shape[0])).astype(np.float32)
    dense = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    if len(shape) == 1:
        return 1 + dense
    quantizers: dict[str, Callable[[F32], Matrix]] = {
        "int4-g32": quantize_int4,
        "int8-g32": quantize_int8,
        "f16": lambda w: w.astype(np.float16),
    }
    return quantizers.get(encoding, lambda w: w)(dense)


def build(case: Case) -> tuple[Graph, dict[str, Matrix]]:
    """tokens -> table row -> op -> selected rows, with random weights."""
    rng = np.random.default_rng(len(case.name))
    op = CATALOGUE[case.op]
    weights: dict[str, Weight] = {}
    stored: dict[str, Matrix] = {}
    for slot, (shape, encoding) in case.weights.items():
        weights[slot] = Weight(shape, encoding)
        stored[slot] = _stored(rng, shape, encoding, slot)
    nodes = []
    for name in () if case.op == "embed" else op.inputs[: 2 if case.op == "add" else 1]:
        weights[f"table.{name}"] = Weight((90, case.width))
        stored[f"table.{name}"] = rng.standard_normal((90, case.width)).astype(np.float32)
        nodes.append(Node("embed", ("tokens",), name, {"weight": f"table.{name}"}))
    states, slots = {}, {slot: slot for slot in case.weights}
    if op.state:
        a = op.check_attrs(case.attrs)
        states["kv"] = State("kv", a["kv_heads"], a["head_dim"], a["window"])
    last = op.inputs[0]
    if case.op != "select":
        state = "kv" if op.state else ""
        nodes.append(Node(case.op, op.inputs, "y", slots, case.attrs, state))
        last = "y"
    nodes.append(Node("select", (last, "rows"), "out"))
    inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
    graph = Graph("op", inputs, (), tuple(nodes), weights, states, CONTEXT)
    shape = graph.shapes()["out"]
    return graph.replace(outputs=(Value("out", shape),)), stored


def tokens_of(case: Case, graph: Graph) -> NDArray[np.int32]:
    """Row numbers of the table, below the output's width as sessions demand."""
    rng = np.random.default_rng(7)
    return rng.integers(0, min(90, graph.vocab_size), case.rows).astype(np.int32)


def run(session: Session, tokens: NDArray[np.int32]) -> F32:
    """All rows: the larger half as one step, then the rest in one, so that caches are read."""
    state = session.new_state(expected=len(tokens))
    out, cut = [], len(tokens) - len(tokens) // 3
    for part in (tokens[:cut], tokens[cut:]):
        if len(part):
            out.append(session.step([Feed(state, part, "all")])[0])
            state.commit(len(part))
    session.close()
    return np.concatenate(out)


class _Poisoned:
    """NumPy whose `empty` is full of NaN, or of 0x5B bytes for integers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any = np.float64, **more: Any) -> Any:
        array = np.empty(shape, dtype, **more)
        array.view(np.uint8).fill(0x5B) if array.dtype.kind in "iu" else array.fill(np.nan)
        return array


class _PoisonedPages(_Poisoned):
    """For the page pool: keys and values start as NaN, as an earlier sequence may leave them."""

    @staticmethod
    def zeros(shape: Any, dtype: Any = np.float64, **more: Any) -> Any:
        array = np.zeros(shape, dtype, **more)
        if array.ndim == 2 and array.dtype == np.uint8:
            array.fill(0xFF)
        return array


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory of sessions and references is poison (compiled modules keep NumPy)."""
    from edgert.kernels import quant

    from edgert.session import cpu, pages

    for module in (quant, cpu):
        monkeypatch.setattr(module, "np", _Poisoned())
    monkeypatch.setattr(pages, "np", _PoisonedPages())


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Executor = Callable[[Graph, Mapping[str, Any], NDArray[np.int32], Path], F32]


def _torch(graph: Graph, weights: Mapping[str, Any], tokens: NDArray[np.int32], _: Path) -> F32:
    with torch.no_grad():
        out = TorchGraph(graph, weights)(torch.from_numpy(tokens.astype(np.int64))[None])
    return out[0].numpy()


def _onnx(variant: Variant) -> Executor:
    def execute(
        graph: Graph, weights: Mapping[str, Any], tokens: NDArray[np.int32], folder: Path
    ) -> F32:
        return run(ort_session(graph, weights, folder, variant, max_rows=CONTEXT), tokens)

    return execute


def _cpu(threads: int) -> Executor:
    def execute(
        graph: Graph, weights: Mapping[str, Any], tokens: NDArray[np.int32], _: Path
    ) -> F32:
        return run(CpuSession(graph, weights, threads=threads, max_rows=CONTEXT), tokens)

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
        assert not op.matrix or encodings == set(MATRIX_ENCODINGS)
    assert {case.rows for case in ALL} >= set(SIZES)
    assert {case.width for case in ALL} >= set(SIZES)


def test_names_are_unique() -> None:
    assert len({case.name for case in ALL}) == len(ALL)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_agrees_with_reference(case: Case, executor: str, tmp_path: Path) -> None:
    graph, weights = build(case)
    tokens = tokens_of(case, graph)
    expected = run(ReferenceSession(graph, weights, max_rows=CONTEXT), tokens)
    execute, plain, quantized = EXECUTORS[executor]
    got = execute(graph, weights, tokens, tmp_path)
    limit = quantized if case.quantized else plain
    assert_close(f"{case.name} {executor}", expected, got, rms=limit)


def test_poison_is_seen() -> None:
    assert np.isnan(_Poisoned.empty(3)).all()
    assert (_Poisoned.empty(3, np.uint8) == 0x5B).all()
    assert np.isnan(_PoisonedPages.zeros((2, 4), np.uint8).view(np.float32)).all()
    assert not _PoisonedPages.zeros(3, np.int32).any()
