"""The stage `mixed`: encodings chosen by measured sensitivity, within a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.converters.quantize.sensitivity import PROBE, Sensitivity, sensitivities
from edgert.converters.stages import mixed as stage
from edgert.converters.stages.base import PartInProgress
from edgert.kernels.encodings import dequantize, quantize

from edgert.bundle import Bundle
from edgert.errors import ConvertError

from ...closeness import distance
from ...tiny import tiny_graph, tiny_weights
from ..wide import converted, encodings, logits, weights, wide_checkpoint

TIGHT, ROOMY = 0.24, 0.34  # megabytes of the bundle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Bundles by their budgets."""
    folder = tmp_path_factory.mktemp("made")
    for budget in (TIGHT, ROOMY):
        converted(checkpoint, folder / f"{budget}.edge", recipe="mixed", budget_mb=budget)
    return {budget: folder / f"{budget}.edge" for budget in (TIGHT, ROOMY)}


def nbytes(out: Path) -> int:
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def test_a_budget_is_kept_and_used(made: dict[float, Path]) -> None:
    for budget, out in made.items():
        print(f"{nbytes(out)} of {budget * 1e6:.0f}")
        assert 0.7 * budget * 1e6 < nbytes(out) <= budget * 1e6
    assert nbytes(made[TIGHT]) < nbytes(made[ROOMY])


def test_matrices_have_encodings_of_their_own(made: dict[float, Path]) -> None:
    for out in made.values():
        found = encodings(out)
        with Bundle.open(out) as bundle:
            told = bundle.manifest.report["stages"]["mixed"]["model"]
        assert found == told["encodings"]
        assert len(set(found.values())) > 1
        assert found["embed"] in stage.ENDS
        assert set(found.values()) <= set(stage.MATRICES)
        assert all(loss >= 0 for loss in told["losses"].values())


def test_more_bytes_lose_less(made: dict[float, Path], checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "f32.edge", quant="f32", calibration=None)
    wanted = logits(tmp_path / "f32.edge")
    lost = {budget: distance(wanted, logits(out))[0] for budget, out in made.items()}
    print(lost)
    assert lost[ROOMY] < 0.8 * lost[TIGHT]


def test_the_same_model_gets_the_same_choice(
    made: dict[float, Path], checkpoint: Path, tmp_path: Path
) -> None:
    converted(checkpoint, tmp_path / "m.edge", quant="mixed", budget_mb=TIGHT)
    assert weights(tmp_path / "m.edge") == weights(made[TIGHT])


def test_a_budget_that_nothing_keeps_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    for budget, said in (
        (0.15, "mixed encodings take [0-9]+ bytes at least, expected at most"),
        (0.01, "a budget of"),
    ):
        with pytest.raises(ConvertError, match=said) as info:
            converted(checkpoint, tmp_path / "m.edge", recipe="mixed", budget_mb=budget)
        assert info.value.code == "budget"
        assert not list(tmp_path.iterdir())


# Sensitivities


class Reader:
    encoding = "f32"

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def spans(self) -> list[tuple[int, int]]:
        return [(0, len(self.array))]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


def measured(scale: float) -> dict[str, Sensitivity]:
    """Of the tiny model's `down` matrices, with the last layer's times `scale`."""
    graph = tiny_graph(quant="f32")
    values = {name: np.asarray(array) for name, array in tiny_weights(graph).items()}
    values["l1.down"] = values["l1.down"] * np.float32(scale)
    readers = {name: Reader(array) for name, array in values.items()}
    part = PartInProgress("model", "text", graph, readers)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(4, 260, (3, 48)).astype(np.int32)
    return sensitivities(part, list(ids), ["l0.down", "l1.down"], threads=1)


def test_a_matrix_that_matters_is_more_sensitive() -> None:
    whole, faint = measured(1.0), measured(1e-3)
    print(whole, faint)
    assert whole["l1.down"].kl > 1e-4
    assert faint["l1.down"].kl < 1e-3 * whole["l1.down"].kl
    assert faint["l0.down"].kl > 100 * faint["l1.down"].kl
    assert faint["l1.down"].error == pytest.approx(whole["l1.down"].error, rel=0.05)


def test_the_loss_of_another_encoding_follows_from_its_error() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    probe = distance(rows, dequantize(quantize(rows, PROBE)))[0]
    known = Sensitivity(0.02, probe)
    assert known.loss(probe) == pytest.approx(0.02)
    assert known.loss(probe / 2) == pytest.approx(0.005)
    assert Sensitivity(0.0, 0.0).loss(0.1) == 0.0
