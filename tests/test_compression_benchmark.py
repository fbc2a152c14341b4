"""The compression benchmark: what it derives from a model, and what its page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters import calibrate
from edgert.converters.compress import baselines
from edgert.converters.compress.budget import Format, storage_bits
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.whiten import Gram, whiten
from edgert.converters.layers import Layers
from edgert.converters.stages.base import PartInProgress
from edgert.converters.weights import ArrayWeight
from edgert.kernels.encodings import encoding_of
from edgert.kernels.quant import F32

from benchmarks import compression_page as page
from benchmarks.compression_factors import Factored, Plan, Recipe, quantized_factors, refitted
from benchmarks.compression_healed import asked
from benchmarks.compression_mixed import Mixed
from benchmarks.compression_model import Model, projections
from benchmarks.compression_quantizers import quantized
from edgert.graph import Graph, Weight
from edgert.session.base import Feed
from edgert.session.reference import ReferenceSession

from . import tiny
from .closeness import assert_close

IDS = np.arange(40, dtype=np.int32) % 250 + 4


def model_of(**sizes: int) -> Model:
    graph = tiny.tiny_graph(quant="f32", **sizes)
    weights: dict[str, F32] = {
        name: np.asarray(w, np.float32) for name, w in tiny.tiny_weights(graph).items()
    }
    inputs = calibrate.inputs_of(graph)
    unused: Any = None
    return Model("tiny", graph, weights, unused, 0, inputs, projections(graph))


def grams_of(model: Model) -> dict[str, Gram]:
    rows = [(IDS * step % 250 + 4).astype(np.int32) for step in range(1, 6)]
    weights = {name: ArrayWeight(array) for name, array in model.weights.items()}
    part = PartInProgress("model", "text", model.graph, weights)
    found: dict[str, Gram] = {}
    for inputs in Layers(part, rows, list(model.inputs.values()), held=0):
        found |= {name: each.gram for name, each in inputs.items()}
    return found


def logits(graph: Graph, weights: Any) -> F32:
    session = ReferenceSession(graph, weights)
    return session.step([Feed(session.new_state(len(IDS)), IDS, "all")])[0].logits


def test_a_fused_matrix_is_cut_into_its_projections() -> None:
    model = model_of(heads=4, kv_heads=2, head_dim=16, ff=96)
    sizes = {
        name.split(".")[-1]: [part.stop - part.start for part in parts]
        for name, parts in model.parts.items()
        if name in model.inputs
    }
    assert sizes == {"qkv": [64, 32, 32], "o": [64], "gate_up": [96, 96], "down": [64]}


def test_scales_of_awq_are_folded_so_that_the_model_stays_the_same() -> None:
    model = model_of()
    found = quantized(model, grams_of(model), "awq", "uint8-g32")
    declared = {
        name: Weight(weight.shape, encoding_of(found.weights.get(name, model.weights[name])).name)
        for name, weight in model.graph.weights.items()
    }
    graph = model.graph.replace(weights=declared)
    exact = logits(model.graph, model.weights)
    norms = [name for name in found.weights if name not in model.inputs]
    assert norms
    assert any(not np.allclose(found.weights[n], model.weights[n]) for n in norms)
    assert_close("logits", exact, logits(graph, {**model.weights, **found.weights}), rms=0.03)


def test_mixed_precision_spends_its_bits_and_no_more() -> None:
    model = model_of(width=128, heads=2, kv_heads=2, head_dim=64, ff=256)
    rows = [IDS, (IDS * 3 % 250 + 4).astype(np.int32)]
    found = Mixed(model, grams_of(model), rows, threads=1)
    few, many = found.outcome(3.0), found.outcome(5.0)
    assert 2.5 * model.count < few.bits <= 3.0 * model.count
    assert 4.5 * model.count < many.bits <= 5.0 * model.count
    assert all(loss > 0 for loss in found.losses.values())


def layer(m: int = 32, n: int = 48) -> tuple[np.ndarray, Gram]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8 * m, m)) * np.arange(1, m + 1) ** -0.5
    return rng.standard_normal((m, n)), Gram(x.T @ x, 8 * m)


def test_a_refit_after_the_fact_is_that_of_compot() -> None:
    w, gram = layer()
    white = whiten(gram)
    plain = compot(w, white, 20, 10)
    wanted = compot(w, white, 20, 10, Options(refit=True))
    assert_close("product", wanted.product(), refitted(plain, w, white).product(), rms=1e-9)


def test_bits_of_quantized_factors_are_codes_scales_and_mask() -> None:
    w, gram = layer(64, 96)
    white = whiten(gram)
    factors = compot(w, white, 64, 32)
    recipe = Recipe(Plan("compot", 0.2), refit=True, a=4, values=6)
    product, bits = quantized_factors(factors, w, white, gram, recipe)
    form = {"a": Format(4, 32), "values": Format(6, 32)}
    assert bits == storage_bits(64, 96, 64, 32, "mask", **form)  # 32 values are those of 64 atoms
    assert_close("product", w, product, rms=0.5)


def test_each_projection_is_factored_and_put_back_where_it_was() -> None:
    model = model_of(width=128, heads=8, kv_heads=8, head_dim=16, ff=256, layers=1)
    found = Factored(model, grams_of(model), Plan("svd-llm", 0.01), exact=True)
    assert [piece.w.shape[1] for piece in found.pieces] == [128, 128, 128, 128, 256, 256, 128]
    outcome = found.outcome(Recipe(found.plan))
    assert outcome.bits < 16 * model.count
    for piece, factors in zip(found.pieces, found.factors, strict=True):
        assert factors is not None
        got = np.asarray(outcome.weights[piece.name])[piece.rows]
        assert_close(piece.name, factors.product().T, got, rms=2e-3)  # rounded to float16


def test_factors_are_the_same_from_several_processes() -> None:
    model = model_of(width=128, heads=2, kv_heads=2, head_dim=64, ff=128, layers=1)
    grams, plan = grams_of(model), Plan("cospadi", 0.5, iterations=2)
    one, two = (Factored(model, grams, plan, processes=count) for count in (1, 2))
    assert len(one.factors) == len(two.factors) == 7
    for a, b in zip(one.factors, two.factors, strict=True):
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.product(), b.product())
    facts = two.outcome(Recipe(plan)).facts
    assert facts["processes"] == 2
    assert facts["wall_seconds"] > 0
    assert two.cost.seconds > 0


def test_compiled_pursuit_is_that_of_the_library() -> None:
    compiled = pytest.importorskip("benchmarks.compression_pursuit", reason="Numba is missing")
    draw = np.random.default_rng(0)
    d = draw.standard_normal((40, 30))
    d /= np.linalg.norm(d, axis=0)
    d[:, 7] = d[:, 3]  # a copy keeps a zero
    y = draw.standard_normal((40, 50))
    code, mask = baselines.pursuit(d, y, 13)
    again, kept = compiled.pursuit(d, y, 13)
    assert (mask == kept).all()
    np.testing.assert_allclose(again, code, atol=1e-10)


def test_a_bundle_to_heal_is_named_as_it_is_made() -> None:
    assert asked("uint3-g64") == {"quant": "uint3-g64", "method": "gptq"}
    assert asked("compot-int4-0.5") == {"recipe": "compot-int4", "compot": 0.5}


def row(side: str, method: str, bits: float, value: float, **more: Any) -> dict[str, Any]:
    return {
        "key": f"{side} {method}", "model": "m", "side": side, "method": method, "healed": 0,
        "weights": 1000, "bits": int(1000 * bits), "file_bytes": int(1000 * bits),
        "bits_per_byte": value, "blimp": 0.7, "seconds": 1.0, "text_bytes": 100,
    } | more  # fmt: skip


LINES = [
    row("edgert", "dense f32", 16, 1.0),
    row("edgert", "gptq int4-g32", 4.5, 1.01),
    row("edgert", "gptq uint3-g64", 3.3, 1.03),
    row("edgert", "compot-20 allocated 0.3 refit a4s4", 3.4, 1.02),
    row("edgert", "compot-20 0.3", 11.0, 1.04),
    row("llama.cpp", "Q4_K_M", 4.6, 1.02, types={"Q4_K": 10}),
    row("llama.cpp", "Q3_K_M", 3.35, 1.05),
]


def test_the_best_row_of_no_more_bits_is_put_against_each_type() -> None:
    text = page.against(LINES)
    three, four = text.splitlines()[2:]
    assert "Q3_K_M | 3.35 |" in three
    assert "compot-20 allocated 0.3 refit a4s4: 3.40" in three
    assert "Q4_K_M | 4.60 |" in four
    assert "gptq int4-g32: 4.50" in four


def test_the_last_line_of_a_key_counts_and_of_examinations_the_longest() -> None:
    short = row("edgert", "gptq int4-g32", 4.5, 9.0, key="other", text_bytes=50)
    again = row("edgert", "gptq int4-g32", 4.5, 1.5)
    found = page.latest([*LINES, short, again])
    values = [x["bits_per_byte"] for x in found if x["method"] == "gptq int4-g32"]
    assert values == [1.5]


def test_factors_in_fp16_stand_by_method_and_ratio() -> None:
    text = page.factor_table(LINES)
    assert "| method | CR 0.3 |" in text
    assert "| compot-20 | +0.0400 (70.0 %, 1 s) |" in text
    assert "a4s4" not in text


def test_a_healed_bundle_stands_beside_what_it_was() -> None:
    lines = [
        row("edgert", "dense f32", 16, 1.0),
        row("edgert", "bundle uint3-g64", 3.3, 1.05),
        row("edgert", "bundle uint3-g64 scales", 3.3, 1.02, healed=1_500_000, heal_seconds=20.0),
        row("edgert", "bundle compot-int4-0.5", 3.1, 1.3),
    ]
    plain, compot = page.healed_table(lines).splitlines()[2:]
    assert plain.startswith("| uint3-g64 | 3.300 | 0.00 | +0.0500 (70.0 %) | +0.0200 (70.0 %) |  |")
    assert plain.endswith("| 1.5M | 20 |")
    assert compot.startswith("| compot-int4-0.5 | 3.100 | 0.00 | +0.3000 (70.0 %) |  |  |")


def test_a_ratio_of_speeds_is_the_median_over_rounds() -> None:
    rows = {"a": {"rounds_ms": [1.0, 2.0, 10.0]}, "b": {"rounds_ms": [2.0, 3.0, 11.0]}}
    assert page.ratio(rows, "a", "b") == pytest.approx(1.5)


def test_llama_gives_the_logits_of_every_batch(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    from benchmarks.gguf_copy import write_gguf
    from benchmarks.runners import LlamaRunner

    model = model_of()
    write_gguf(model.graph, dict(model.weights), tmp_path / "tiny.gguf")
    runner = LlamaRunner(tmp_path / "tiny.gguf", 1, context=64, batch=16)
    try:
        found = runner.step(IDS, every=True)
    finally:
        runner.close()
    assert_close("logits", logits(model.graph, model.weights), found, rms=0.02)
