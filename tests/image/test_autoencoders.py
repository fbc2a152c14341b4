"""Autoencoders against diffusers, and TAEF2 on photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.families import autoencoder_kl, autoencoder_tiny, taef2
from edgert.converters.families.recipe import FamilyModel

from edgert.errors import ConvertError
from edgert.graph import Graph
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession
from tests.closeness import assert_close
from tests.image import models
from tests.onnx_model import ort_session

RMS = 1e-4
SIZES = [(4, 6), (1, 3)]
KL: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 24], "layers_per_block": 2, "norm_num_groups": 4,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("AutoencoderTiny", {"encoder_block_out_channels": [20] * 4,
                                 "decoder_block_out_channels": [20] * 4}),
    "tiny-silu": ("AutoencoderTiny", {
        "encoder_block_out_channels": [16] * 2, "decoder_block_out_channels": [16] * 2,
        "num_encoder_blocks": [1, 2], "num_decoder_blocks": [2, 1], "act_fn": "silu",
        "latent_channels": 16}),
    "kl": ("AutoencoderKL", KL),
    "kl-plain": ("AutoencoderKL", {**KL, "mid_block_add_attention": False, "latent_channels": 16,
                                   "use_quant_conv": False, "use_post_quant_conv": False}),
}  # fmt: skip
MODULES: dict[str, Any] = {"AutoencoderTiny": autoencoder_tiny, "AutoencoderKL": autoencoder_kl}
Open = Callable[[Graph, Mapping[str, Any], Path], Any]
DEVICES: dict[str, Open] = {
    "reference": lambda graph, weights, _: ReferenceSession(graph, weights),
    "cpu": lambda graph, weights, _: CpuSession(graph, weights, threads=2),
    "onnx": ort_session,
}


def autoencoder(name: str) -> Any:
    """A tiny random autoencoder of diffusers."""
    diffusers = pytest.importorskip("diffusers")
    import torch

    torch.manual_seed(5)
    kind, config = CASES[name]
    return models.noisy(getattr(diffusers, kind)(**config), 5)


def rows_of(picture: Any) -> np.ndarray:
    """torch [1, C, H, W] as rows [H * W, C]."""
    return models.rows_of(picture[0].detach().numpy())


def picture_of(rows: np.ndarray, size: tuple[int, int]) -> Any:
    import torch

    return torch.from_numpy(rows.T.reshape(1, -1, *size).copy())


def answer(
    device: str, model: FamilyModel, tensors: Mapping[str, Any], rows: np.ndarray, folder: Path
) -> np.ndarray:
    """What a family's graph makes of rows."""
    weights = models.weights_of(model, tensors)
    session = DEVICES[device](model.graph, weights, folder)
    found: np.ndarray = session.run({model.graph.inputs[0].name: rows})[model.graph.outputs[0].name]
    session.close()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_an_autoencoder_answers_as_diffusers(
    name: str, size: tuple[int, int], device: str, tmp_path: Path
) -> None:
    module, faults = autoencoder(name), list[str]()
    config = {"_class_name": type(module).__name__, **module.config}
    family, tensors = MODULES[type(module).__name__], models.tensors_of(module)
    spec = family.latents(config, faults)
    decoder = family.decoder(config, *size, faults)
    encoder = family.encoder(config, *size, faults)
    assert not faults
    used = {p.name for m in (decoder, encoder) for r in m.tensors.values() for p in r.parts}
    assert used == set(tensors)
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((size[0] * size[1], spec.channels)).astype(np.float32)
    expected = rows_of(module.decode(picture_of(latents, size)).sample)
    got = answer(device, decoder, tensors, latents, tmp_path)
    span = spec.high - spec.low
    assert_close(f"{name} decoder", expected, (got - spec.low) / span * 2 - 1, rms=RMS)
    grid = (size[0] * spec.downscale, size[1] * spec.downscale)
    pixels = rng.uniform(-1, 1, (grid[0] * grid[1], 3)).astype(np.float32)
    found = module.encode(picture_of(pixels, grid))
    means = found.latents if name.startswith("tiny") else found.latent_dist.mean
    given = ((pixels + 1) / 2 * span + spec.low).astype(np.float32)
    folder = tmp_path / "encoder"
    folder.mkdir()
    got = answer(device, encoder, tensors, given, folder)
    assert_close(f"{name} encoder", rows_of(means), got, rms=RMS)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        (autoencoder_tiny, {"act_fn": "mish"}, "act_fn"),
        (autoencoder_tiny, {"decoder_block_out_channels": [64, 64, 64, 32]}, "all the same"),
        (autoencoder_tiny, {"num_decoder_blocks": [1, 1]}, "expected one width"),
        (autoencoder_tiny, {"upsampling_scaling_factor": 3}, "27 pixels"),
        (autoencoder_tiny, {"wings": 2}, "'wings'"),
        (autoencoder_kl, {"up_block_types": ["AttnUpDecoderBlock2D"]}, "up_block_types"),
        (autoencoder_kl, {"block_out_channels": [48]}, "norm_num_groups"),
        (autoencoder_kl, {"latents_mean": [1.0]}, "latents_mean"),
    ],
)
def test_a_config_that_is_not_computed_is_a_fault(
    family: Any, changes: dict[str, Any], told: str
) -> None:
    faults: list[str] = []
    family.latents(changes, faults)
    assert any(told in fault for fault in faults), faults


def test_a_width_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConvertError, match="latent_channels"):
        taef2.decoder({"latent_channels": "many"}, 8, 8, [])


# --- real weights -----------------------------------------------------------------------------


def taef2_tensors(data: Path) -> dict[str, np.ndarray]:
    """Tensors of both parts, named as the family wants them."""
    from safetensors.numpy import load_file

    folder = data / "vae-taef2"
    return {
        f"{part}.{name}": array.astype(np.float32)
        for part in ("encoder", "decoder")
        for name, array in load_file(folder / f"taef2_{part}.safetensors").items()
    }


def taef2_module(part: str, tensors: Mapping[str, np.ndarray]) -> Any:
    """The torch model of the folder's README."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, pooled: bool = False) -> None:
            super().__init__()
            convs = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
            self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(),
                nn.Conv2d(256, 64, 1, bias=False),
            ) if pooled else None  # fmt: skip

        def forward(self, x: Any) -> Any:
            x = x if self.pool is None else x + self.pool(x)
            return torch.relu(self.conv(x) + x)

    class Clamp(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.tanh(x / 3) * 3

    def plain(stride: int = 1) -> Any:
        return nn.Conv2d(64, 64, 3, stride, 1, bias=False)

    if part == "encoder":
        layers = [nn.Conv2d(3, 64, 3, padding=1), Block()]
        for stage in range(3):
            layers += [plain(2), *(Block(stage == 2) for _ in range(3))]
        layers.append(nn.Conv2d(64, 32, 3, padding=1))
    else:
        layers = [Clamp(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
        layers += [Block(True) for _ in range(3)]
        for count in (3, 3, 1):
            layers += [nn.Upsample(scale_factor=2), plain(), *(Block() for _ in range(count))]
        layers.append(nn.Conv2d(64, 3, 3, padding=1))
    module, found = nn.Sequential(*layers), f"{part}."
    module.load_state_dict({
        name.removeprefix(found): torch.from_numpy(array)
        for name, array in tensors.items() if name.startswith(found)
    })  # fmt: skip
    return module.eval()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of pictures in [0, 1]."""
    return float(-10 * np.log10(np.mean((np.clip(a, 0, 1) - b) ** 2)))


def test_taef2_brings_photographs_back_as_torch_does(shared_data: Path) -> None:
    import torch
    from PIL import Image

    tensors = taef2_tensors(shared_data)
    stored = {name: models.Stored(array) for name, array in tensors.items()}
    size, faults = (32, 32), list[str]()
    parts = {
        "encoder": taef2.encoder({}, *size, faults), "decoder": taef2.decoder({}, *size, faults),
    }  # fmt: skip
    assert not faults
    used = {p.name for m in parts.values() for r in m.tensors.values() for p in r.parts}
    assert used == set(tensors)
    modules = {part: taef2_module(part, tensors) for part in parts}
    sessions = {
        part: CpuSession(model.graph, models.weights_of(model, stored), threads=2)
        for part, model in parts.items()
    }
    photos = sorted((shared_data / "img-photos").glob("*.png"))[:3]
    assert photos
    for path in photos:
        with Image.open(path) as image:
            cut = image.convert("RGB").crop((64, 64, 320, 320))
        rows = (np.asarray(cut, np.float32) / 255).reshape(-1, 3)
        with torch.no_grad():
            latents = modules["encoder"](picture_of(rows, (256, 256)))
            expected = rows_of(modules["decoder"](latents))
        own = sessions["encoder"].run({"pixels": rows})["latents"]
        assert_close(f"{path.name} latents", rows_of(latents), own, rms=RMS)
        got = sessions["decoder"].run({"latents": own})["pixels"]
        assert_close(f"{path.name} pixels", expected, got, rms=RMS)
        assert abs(psnr(expected, rows) - psnr(got, rows)) < 0.05
        assert psnr(got, rows) > 20
    for session in sessions.values():
        session.close()
