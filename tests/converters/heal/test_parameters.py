"""What is trained of a stored weight: there and back, gradients, and zeros that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgert.converters.heal import coded
from edgert.converters.heal.parameters import Plain, Rounded, Scaled, Trained, trained_of
from edgert.kernels import encodings, sparse
from edgert.kernels.encodings import ENCODINGS, dequantize, tensors_of
from edgert.kernels.quant import Matrix, Quantized

from edgert.graph import Graph
from tests.closeness import assert_close
from tests.converters.heal.models import ORIGINAL, TEACHER

GRIDS = [name for name, row in ENCODINGS.items() if row.grid is not None]


def matrix(n: int = 6, k: int = 150) -> np.ndarray:
    """Rows of odd length, with a group of zeros."""
    w = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    w[2, :128] = 0
    return w


def one(weight: Matrix, method: str, original: np.ndarray | None = None) -> Trained:
    from edgert.graph import Weight

    name = weight.encoding if isinstance(weight, Quantized) else weight.dtype.name
    graph = Graph("g", (), (), (), {"w": Weight(weight.shape, name)})
    originals = {} if original is None else {"w": original}
    return trained_of(graph, {"w": weight}, originals, method=method, device="cpu")["w"]


def same(a: Matrix, b: Matrix) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return all(
        left[key].dtype == right[key].dtype and np.array_equal(left[key], right[key])
        for key in left.keys() | right.keys()
    )


@pytest.mark.parametrize("method", ["scales", "straight-through"])
@pytest.mark.parametrize("name", GRIDS)
def test_untrained_a_matrix_is_stored_as_it_was(name: str, method: str) -> None:
    w = matrix()
    stored = encodings.quantize(w, name)
    for original in (None, w, w + 0.3):
        weight = one(stored, method, original)
        assert isinstance(weight, Rounded if method == "straight-through" else Scaled)
        assert_close(name, dequantize(stored), weight.dense().detach().numpy(), rms=1e-6)
        assert same(weight.stored(), stored)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_stored_plainly_is_trained_whole(dtype: type) -> None:
    array = matrix().astype(dtype)
    weight = one(array, "scales")
    assert isinstance(weight, Plain)
    assert_close("dense", array.astype(np.float32), weight.dense().detach().numpy(), rms=1e-6)
    found = weight.stored()
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    assert_close("stored", array.astype(np.float32), found.astype(np.float32), rms=1e-6)
    zeros = one(np.zeros(5, np.float32), "scales")
    with torch.no_grad():
        zeros.tensors["values"] += 1
    assert (np.asarray(zeros.stored()) != 0).all()


@pytest.mark.parametrize("method", ["scales", "straight-through"])
@pytest.mark.parametrize("name", GRIDS)
def test_trained_a_matrix_is_still_a_valid_one(name: str, method: str) -> None:
    weight = one(encodings.quantize(matrix(), name), method, matrix())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for kind, tensor in weight.tensors.items():
            size = 0.1 if kind == "scales" else 3
            tensor += size * torch.randn(tensor.shape, generator=generator)
    weight.settle()
    found = weight.stored()
    assert isinstance(found, Quantized)
    assert encodings.damage(found) == ""
    assert {k: a.shape for k, a in found.tensors.items()} == {
        t.key: t.shape((6, 150)) for t in ENCODINGS[name].tensors
    }
    dense = weight.dense().detach().numpy()
    assert_close(name, dequantize(found), dense, rms=5e-4)  # scales in float16
    assert not dense[2, :128].any()  # a group without a scale stays zero


def test_gradients_of_scales_and_levels() -> None:
    stored = encodings.quantize(matrix(), "uint3-g64")
    pull = torch.from_numpy(matrix()[::-1].copy())
    weight = one(stored, "straight-through", matrix())
    assert isinstance(weight, Rounded)
    (weight.dense() * pull).sum().backward()
    grouped = torch.nn.functional.pad(pull, (0, 42)).reshape(6, 3, 64)
    levels = torch.from_numpy(weight.final().astype(np.float32))
    expected = (grouped * levels).sum(-1) * weight.scales
    assert_close("scales", expected.numpy(), weight.tensors["scales"].grad.numpy(), rms=1e-5)
    expected = grouped * weight.scales[..., None]
    assert_close("levels", expected.numpy(), weight.tensors["levels"].grad.numpy(), rms=1e-5)


def test_latent_levels_start_near_the_original_in_the_cell_of_their_code() -> None:
    w = matrix()
    stored = encodings.quantize(w, "int3-g32")
    weight = one(stored, "straight-through", w)
    latent = weight.tensors["levels"].detach() * weight.scales[..., None]
    near = latent.reshape(6, -1)[:, :150].numpy()
    assert np.median(np.abs(near - w)) < 1e-6 < np.median(np.abs(dequantize(stored) - w))
    away = one(stored, "straight-through", w + 100)
    assert same(away.stored(), stored)


def test_rotary_tables_and_unknown_encodings_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = trained_of(TEACHER, ORIGINAL, {}, method="scales", device="cpu")
    assert set(TEACHER.weights) - set(found) == {"inv_freq"}
    monkeypatch.setattr(coded, "READERS", [])
    stored = {n: encodings.quantize(np.asarray(w), "f32") for n, w in ORIGINAL.items()}
    stored["l0.qkv"] = encodings.quantize(np.asarray(ORIGINAL["l0.qkv"]), "int4-g32")
    found = trained_of(TEACHER, stored, {}, method="scales", device="cpu")
    assert set(TEACHER.weights) - set(found) == {"inv_freq", "l0.qkv"}


def test_a_scale_that_float16_does_not_hold_is_an_error() -> None:
    weight = one(encodings.quantize(matrix(), "int4-g32"), "scales")
    with torch.no_grad():
        weight.tensors["scales"][0, 0] = 1e6
    with pytest.raises(ValueError, match="limit is 65504"):
        weight.stored()
    with torch.no_grad():
        weight.tensors["scales"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        weight.stored()


# --- sparse codes ---


@pytest.mark.parametrize("method", ["scales", "straight-through"])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_what_sparse_codes_do_not_keep_stays_zero(bits: int, method: str) -> None:
    w = matrix()
    order = np.random.default_rng(1).random(w.shape).argsort(axis=1)
    mask = order < 47
    stored = sparse.quantize(w, mask, bits)
    tensors = stored.tensors
    weight = one(stored, method, w)
    assert same(weight.stored(), stored)
    pull = torch.from_numpy(matrix()[::-1].copy())
    optimizer = torch.optim.AdamW(list(weight.tensors.values()), 0.2)
    for _ in range(8):
        optimizer.zero_grad()
        (weight.dense() - pull).square().sum().backward()
        optimizer.step()
        weight.settle()
    found = weight.stored()
    assert isinstance(found, Quantized)
    assert np.array_equal(found.tensors["mask"], tensors["mask"])
    values = dequantize(found)
    assert not values[~mask].any()
    assert np.square(values - pull.numpy())[mask].sum() < np.square(w - pull.numpy())[mask].sum()
    changed = not np.array_equal(found.tensors["q"], tensors["q"])
    assert changed == (method == "straight-through")
