"""Healing a tiny model: held-out KL falls, gradients are those of the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from edgert.converters.heal import Healed, HealOptions, heal, loss
from edgert.converters.heal.parameters import trained_of
from edgert.converters.heal.ranks import Ranks
from edgert.converters.heal.train import batches, divided, gradients, rate_at
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import encodings
from edgert.kernels.encodings import dequantize, encoding_of
from edgert.kernels.quant import Matrix

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.graph import Graph
from tests.closeness import assert_close
from tests.conftest import ROOT
from tests.converters.heal.models import (
    ORIGINAL,
    TEACHER,
    Weights,
    divergence,
    rounded,
    sequences,
)
from tests.converters.stages.toy import split_graph
from tests.tiny import tiny_graph


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(graph: Graph, weights: Weights, tokens: int = 2000, **options: Any) -> Healed:
    asked = HealOptions(tokens, batch=4, held_out=4, device="cpu", **options)
    return heal(graph, weights, TEACHER, ORIGINAL, sequences(), asked)


def stores_the_same(before: Weights, after: Weights) -> None:
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert encoding_of(after[name]).name == encoding_of(weight).name
        assert encodings.damage(after[name]) == ""
        old, new = encodings.tensors_of(weight), encodings.tensors_of(after[name])
        for key in old:
            assert (old[key].shape, old[key].dtype) == (new[key].shape, new[key].dtype)


@pytest.mark.parametrize("optimizer", ["adamw", "dash"])
@pytest.mark.parametrize("method", ["scales", "straight-through"])
def test_held_out_divergence_falls(method: str, optimizer: str) -> None:
    graph, weights = rounded("uint2-g64")
    found = run(graph, weights, method=method, optimizer=optimizer)
    assert found.improved
    assert found.after < 0.95 * found.before
    assert (found.steps, found.tokens) == (32, 2048)
    held_out = sequences()[-4:]
    assert_close("before", divergence(graph, weights, held_out), found.before, rms=1e-4)
    assert_close("after", divergence(graph, dict(found.weights), held_out), found.after, rms=1e-4)
    stores_the_same(weights, dict(found.weights))
    assert found.kept == ("inv_freq",)
    assert np.array_equal(found.weights["inv_freq"], weights["inv_freq"])
    codes = [
        np.array_equal(weights[name].tensors["q"], found.weights[name].tensors["q"])
        for name in ("l0.qkv", "l0.o", "l0.gate_up", "l0.down")
    ]
    assert all(codes) == (method == "scales")


def test_losses_are_those_of_the_next_token() -> None:
    graph, weights = rounded("int3-g32")
    found = run(graph, weights, tokens=64)
    rows = sequences()[-4:]
    for name, model, expected in (
        ("model", (graph, weights), found.start.nats), ("source", (TEACHER, ORIGINAL), found.source)
    ):  # fmt: skip
        module = TorchGraph(*model)
        own = [
            torch.nn.functional.cross_entropy(
                module(torch.from_numpy(ids[None]).long())[0, :-1], torch.from_numpy(ids[1:]).long()
            ).item()
            for ids in rows
        ]
        assert_close(name, np.mean(own), expected, rms=1e-5)


def test_factors_of_a_weight_are_healed() -> None:
    """A model whose linears were split, with a dictionary in float16 and codes in four bits."""
    name = "l0.down"
    graph = split_graph(TEACHER, [name])
    u, s, v = np.linalg.svd(np.asarray(ORIGINAL[name]), full_matrices=False)
    s[len(s) // 2 :] = 0
    weights = {n: w for n, w in ORIGINAL.items() if n != name}
    weights[f"{name}.u"] = encodings.quantize((u * s).astype(np.float32), "f16")
    weights[f"{name}.v"] = encodings.quantize(v.astype(np.float32), "int4-g32")
    declared = {n: type(w)(w.shape, encoding_of(weights[n]).name) for n, w in graph.weights.items()}
    found = run(graph.replace(weights=declared), weights)
    assert found.improved
    stores_the_same(weights, dict(found.weights))
    assert not np.array_equal(found.weights[f"{name}.u"], weights[f"{name}.u"])


def reference_gradients(graph: Graph, weights: Weights, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean KL in every dense weight, without cuts."""
    student = TorchGraph(graph, weights)
    leaves = {name: w.requires_grad_() for name, w in student.weights.items()}
    tokens = torch.from_numpy(rows).long()
    target = TorchGraph(TEACHER, ORIGINAL)(tokens).log_softmax(-1)
    guess = student(tokens).log_softmax(-1)
    ((target.exp() * (target - guess)).sum() / rows.size).backward()
    return {n: w.grad.numpy() for n, w in leaves.items() if w.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("size", "micro"), [(1 << 26, None), (4 * 64 * 3 * 2, 2), (1, 1)])
def test_gradients_in_chunks_are_those_of_the_whole(
    size: int, micro: int | None, tied: bool
) -> None:
    graph, weights = TEACHER, dict(ORIGINAL)
    if not tied:
        graph = tiny_graph(quant="f32", tied=False, layers=1, width=32, heads=2, kv_heads=1, ff=48,
                           vocab=64)  # fmt: skip
        weights["head"] = weights["embed"]
    rng = np.random.default_rng(3)
    weights = {
        n: w if n == "inv_freq" else np.asarray(w) + 0.05 * rng.standard_normal(w.shape, np.float32)
        for n, w in weights.items()
    }
    rows = np.stack(sequences(3))
    expected = reference_gradients(graph, weights, rows)
    trained = trained_of(graph, weights, {}, method="scales", device="cpu")
    student = loss.TwoPieces(graph, weights, "cpu", half=False)
    student.forget(set(trained))
    teacher = loss.TwoPieces(TEACHER, ORIGINAL, "cpu", half=False)
    with mock.patch.object(loss, "LOGITS", size):
        gradients(
            student, teacher, trained, rows, HealOptions(1, micro_batch=micro), Ranks(), "cpu"
        )
    assert trained.keys() == expected.keys() - {"inv_freq"}
    for name, weight in trained.items():
        got = weight.tensors["values"].grad.numpy() / weight.rms
        assert_close(name, expected[name], got, rms=1e-4)


def test_one_thread_and_one_seed_give_the_same_bytes() -> None:
    graph, weights = rounded("int3-g32")
    once, again = (run(graph, weights, 500, method="straight-through") for _ in range(2))
    assert once.end == again.end
    for name, weight in once.weights.items():
        assert np.array_equal(dequantize(weight), dequantize(again.weights[name]))
    other = run(graph, weights, 500, method="straight-through", seed=1)
    assert other.end != once.end


def test_a_model_is_never_made_worse() -> None:
    graph, weights = rounded("int4-g32")
    found = run(graph, weights, method="straight-through", rate=0.9)
    assert not found.improved
    assert found.end.kl > found.before == found.after
    assert all(found.weights[name] is weight for name, weight in weights.items())


def test_sequences_come_in_every_order_once_and_the_last_are_kept_out() -> None:
    rows = sequences(10, 16)
    split = divided(rows, HealOptions(16 * 16, batch=4, held_out=5))
    assert (split.batch, split.steps) == (4, 4)
    assert np.array_equal(split.held_out, rows[-2:])  # a quarter at most
    seen = [ids.tobytes() for batch in batches(split, 0) for ids in batch]
    assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(ids.tobytes() for ids in rows[:8])
    assert divided(rows, HealOptions(17)).batch == 2


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 1e-3
    assert rate_at(0, 1) == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 0}, "tokens is 0, expected 1 to 68719476736"),
        ({"batch": 0}, "batch is 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"method": "magic"}, r"method is 'magic', expected one of \['scales', 'straight-through'"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"rate": 0.0}, "rate is 0, expected more than 0"),
        ({"rate": float("nan")}, "rate is nan"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConvertError, match=said):
        HealOptions(**{"tokens": 100, **changes})


@pytest.mark.parametrize(
    "rows", [[], sequences(1), [*sequences(3), np.zeros(4, np.int32)], sequences(4, 1)]
)
def test_too_little_text(rows: list[np.ndarray]) -> None:
    with pytest.raises(ConvertError, match="expected two or more of one length"):
        heal(TEACHER, ORIGINAL, TEACHER, ORIGINAL, rows, HealOptions(10, device="cpu"))


def test_models_that_do_not_belong_together() -> None:
    other = tiny_graph(quant="f32", layers=1, width=32, heads=2, kv_heads=1, ff=48, vocab=65)
    asked = HealOptions(10, device="cpu")
    with pytest.raises(ConvertError, match="logits of 64 tokens, the original of 65"):
        heal(TEACHER, ORIGINAL, other, ORIGINAL, sequences(), asked)
    rows = [ids + 60 for ids in sequences()]
    with pytest.raises(ConvertError, match=r"token ids from 60 to 123, expected them below 64"):
        heal(TEACHER, ORIGINAL, TEACHER, ORIGINAL, rows, asked)
    cut = TEACHER.cut(["tokens"], ["l0.mid"])
    with pytest.raises(ConvertError, match="expected tokens and the rows"):
        heal(cut, ORIGINAL, TEACHER, ORIGINAL, sequences(), asked)


def test_a_loss_that_is_not_finite_stops_it() -> None:
    graph, weights = rounded("int4-g32")
    broken: dict[str, Matrix] = {**weights, "norm": np.full(32, np.nan, np.float32)}
    with pytest.raises(ConvertError, match="loss before the first step is nan"):
        run(graph, broken)
    real = loss.divergence

    def breaks(target: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return real(target, guess) * (torch.nan if guess.requires_grad else 1)

    with (
        mock.patch.object(loss, "divergence", breaks),
        pytest.raises(ConvertError, match="loss at step 1 of 32 is nan") as error,
    ):
        run(graph, weights)
    assert "lower the rate" in error.value.hint


def test_without_torch_the_error_names_the_extra() -> None:
    with (
        mock.patch("edgert.extras.find_spec", return_value=None),
        pytest.raises(ConvertError, match="healing needs the package torch") as error,
    ):
        run(TEACHER, dict(ORIGINAL))
    assert 'pip install "edgert[convert]"' in error.value.hint


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, edgert.converters.heal, edgert.converters.stages.heal; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "torch" not in done.stdout.split()


# --- several processes ----------------------------------------------------------------------------

RANK = """
import os, sys
import numpy as np, torch
torch.set_num_threads(1)
from edgert.converters.heal import HealOptions, heal
from edgert.kernels.encodings import dequantize
from tests.converters.heal.models import *
graph, weights = rounded("int3-g32")
arrays = {}
for method, optimizer, tokens, rate, batch in [
    ("scales", "adamw", 700, 5e-3, 3), ("scales", "dash", 320, 5e-3, 1),
    ("straight-through", "adamw", 144, 3e-3, 3),
]:
    asked = HealOptions(tokens, method, optimizer, rate, batch, held_out=3, device="cpu")
    found = heal(graph, weights, TEACHER, ORIGINAL, sequences(), asked)
    assert found.improved
    run = f"{method} {optimizer} "
    arrays |= {run + name: dequantize(w) for name, w in found.weights.items()}
    arrays[run + "KL"] = np.array([found.before, found.after])
np.savez(f"{sys.argv[1]}/{os.environ.get('RANK', '0')}.npz", **arrays)
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_give_what_one_gives(tmp_path: Path) -> None:
    """Batches of three and one: the ranks' shares differ, one is empty. Of codes few steps: a sum
    that is rounded to the other side of a code's edge makes another run."""
    script = tmp_path / "rank.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{RANK}", encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results = {}
    for name, launcher in (("one", []), ("two", torchrun)):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(folder)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results[name] = [dict(np.load(path)) for path in sorted(folder.iterdir())]
    (alone,), (first, second) = results["one"], results["two"]
    for name, expected in alone.items():
        assert np.array_equal(first[name], second[name])
        assert_close(name, expected, first[name], rms=1e-3)


@pytest.mark.slow
def test_a_conversion_under_torchrun_is_written_once(tmp_path: Path) -> None:
    """Both ranks convert; the second one's bundle is not kept, and nothing of it stays."""
    checkpoint, out = ROOT / "edgert/demo/stories260k", tmp_path / "m.edge"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "edgert", "convert", str(checkpoint), "-o", str(out)]
    command += ["--quant", "int2", "--heal", "8000", "--method", "rtn"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "t").mkdir()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written:") == 1
    with Bundle.open(out, verify="full") as bundle:
        told = bundle.manifest.report["stages"]["heal"]["model"]
    assert told["kl_after"] < told["kl_before"]
    assert {path.name for path in tmp_path.iterdir()} == {"m.edge", "t"}
    assert not list((tmp_path / "t").glob("edgert-rank-*"))
