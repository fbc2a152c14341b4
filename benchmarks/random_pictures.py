"""Folders in diffusers' layout with random weights in the shapes of published transformers, and
bundles of them, without a download.

    python -m benchmarks.random_pictures dit-s random-dit-s [--quant f32 int8 int4]

Tensors are drawn one by one from the seed and their name, in float16, and written as they are
drawn: DiT-XL/2 takes 1.5 GB of disk and no more memory than its largest matrix. Speed does not
depend on values; these keep activations at their size, so that programs can be compared.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert
from numpy.typing import NDArray

from edgert.storage.safetensors_writer import TensorWriter

DIT: dict[str, Any] = {
    "in_channels": 4, "out_channels": 8, "sample_size": 32, "patch_size": 2,
    "num_embeds_ada_norm": 1000, "attention_bias": True, "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-5,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "dit-s": {**DIT, "num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "dit-xl": {**DIT, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}
TINY: dict[str, Any] = {"encoder_block_out_channels": (16,) * 4,
                        "decoder_block_out_channels": (16,) * 4,
                        "num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}  # fmt: skip
FILE = "diffusion_pytorch_model.safetensors"
BLOCK = 4_000_037  # values drawn; longer tensors repeat them


def random_pipeline(shape: str, out: Path, *, seed: int = 0) -> Path:
    """Write a folder of a shape of SHAPES, unless it is there; returns it."""
    if (out / "model_index.json").exists():
        return out
    import diffusers
    import torch

    config = SHAPES[shape]
    with torch.device("meta"):
        module = diffusers.DiTTransformer2DModel(**config)
    write_tensors(out / "transformer", shapes_of(module), seed)
    write_json(out / "transformer" / "config.json",
               {"_class_name": "DiTTransformer2DModel", **config})  # fmt: skip
    torch.manual_seed(seed)
    diffusers.AutoencoderTiny(**TINY).save_pretrained(out / "vae")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_config(out / "scheduler")
    index = {
        "_class_name": "DiTPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }  # fmt: skip
    write_json(out / "model_index.json", index)
    return out


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def write_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Random float16 tensors, one by one."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {name: ("F16", shape) for name, shape in shapes.items()}
    with TensorWriter(folder / FILE, specs) as file:
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            block = drawn(name, shape, min(size, BLOCK), seed)
            for start in range(0, size, len(block)):
                file.write(name, block[: size - start])


def drawn(name: str, shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.float16]:
    """Matrices with deviation 1 / sqrt(inputs), the rest small."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    spread = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.02
    return (spread * rng.standard_normal(count, np.float32)).astype(np.float16)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def bundles_of(folder: Path, quants: Sequence[str]) -> dict[str, Path]:
    """Bundles beside a folder, made where they are not there."""
    found = {quant: folder.with_name(f"{folder.name}-{quant}.edge") for quant in quants}
    for quant, path in found.items():
        if not path.exists():
            convert(folder, path, quant=quant, progress=False, golden=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quant", nargs="*", default=["f32", "int8", "int4"])
    args = parser.parse_args()
    for path in bundles_of(random_pipeline(args.shape, args.folder), args.quant).values():
        print(path)


if __name__ == "__main__":
    main()
