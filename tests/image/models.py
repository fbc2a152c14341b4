"""Tiny random components of picture pipelines, made by diffusers and transformers, and what they
answer; `session` opens what a family makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from edgert.converters.families.recipe import FamilyModel
from edgert.converters.stages.read import RecipeWeight
from edgert.converters.weights import whole

from edgert.graph import Graph
from edgert.session import kernel_cache
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

# Sessions that every component is compared on.
DEVICES: dict[str, Any] = {
    "reference": ReferenceSession,
    "cpu": lambda graph, weights: CpuSession(graph, weights, threads=1, cache=kernel_cache()),
}

BLOCK: dict[str, Any] = {
    "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "in_channels": 4,
    "sample_size": 8, "patch_size": 2,
}  # fmt: skip
# case -> (class of diffusers, config)
DENOISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dit": ("DiTTransformer2DModel", {**BLOCK, "out_channels": 8, "num_embeds_ada_norm": 10}),
    "dit-plain": (
        "DiTTransformer2DModel",
        {
            **BLOCK, "attention_bias": False, "activation_fn": "gelu", "norm_eps": 1e-3,
            "num_embeds_ada_norm": 4,
        },
    ),
    "pixart-sigma": (
        "PixArtTransformer2DModel",
        {
            **BLOCK, "cross_attention_dim": 24, "caption_channels": 20,
            "use_additional_conditions": False, "interpolation_scale": 2,
        },
    ),
    "pixart-alpha": (
        "PixArtTransformer2DModel",
        {
            **BLOCK, "cross_attention_dim": 24, "caption_channels": 20, "out_channels": 4,
            "use_additional_conditions": True,
        },
    ),
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 24,
    "attention_head_dim": 2,
}  # fmt: skip
# case -> config
UNETS: dict[str, dict[str, Any]] = {
    "sd1": UNET,
    "sd2": {
        **UNET, "use_linear_projection": True, "attention_head_dim": (2, 4), "layers_per_block": 2,
        "upcast_attention": True, "freq_shift": 1, "norm_eps": 1e-3, "time_embedding_dim": 24,
    },
    "lcm": {**UNET, "time_cond_proj_dim": 12, "transformer_layers_per_block": 2},
    "odd": {
        **UNET, "block_out_channels": (8, 12, 12), "layers_per_block": (2, 1, 1),
        "attention_head_dim": (1, 3, 2), "transformer_layers_per_block": (1, 3, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "wide": {**UNET, "block_out_channels": (64, 64)},  # whose matrices are worth codes
    "middle-less": {**UNET, "mid_block_type": None, "block_out_channels": (16, 16)},
    "one-level": {
        **UNET, "block_out_channels": (8,), "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
}  # fmt: skip
DENOISERS |= {case: ("UNet2DConditionModel", config) for case, config in UNETS.items()}
T5: dict[str, dict[str, Any]] = {
    "t5-1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5-1.0": {"feed_forward_proj": "relu", "relative_attention_max_distance": 20},
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 64, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 16,
}  # fmt: skip
# case -> (class of transformers, changes to CLIP_SIZES)
CLIP: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPTextModel", {}),
    "clip-projection": (
        "CLIPTextModelWithProjection", {"hidden_act": "gelu", "projection_dim": 12}
    ),
}  # fmt: skip
CLIP_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 77, "bos_token_id": 62,
    "eos_token_id": 63, "pad_token_id": 63,
}  # fmt: skip


class Stored:
    """A tensor of a state dict as a `SourceTensor`."""

    dtype = "F32"

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, tuple(array.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


def tensors_of(module: Any) -> dict[str, Stored]:
    """The state dict of a torch module."""
    return {
        name: Stored(t.detach().float().numpy().copy()) for name, t in module.state_dict().items()
    }


def noisy(module: Any, seed: int) -> Any:
    """The module with every parameter random, so that nothing is lost in zeros and ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def denoiser(case: str) -> Any:
    """A denoiser of diffusers."""
    import diffusers
    import torch

    torch.manual_seed(1)
    kind, config = DENOISERS[case]
    return noisy(getattr(diffusers, kind)(**config), 1)


def t5(case: str) -> Any:
    """A text encoder of transformers."""
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(2)
    return noisy(T5EncoderModel(T5Config(**{**T5_SIZES, **T5[case]})), 2)


def clip(case: str) -> Any:
    """A text encoder of transformers."""
    import torch
    import transformers

    torch.manual_seed(3)
    kind, changes = CLIP[case]
    config = transformers.CLIPTextConfig(**{**CLIP_SIZES, **changes})
    return noisy(getattr(transformers, kind)(config), 3)


def weights_of(model: FamilyModel, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every weight of a family's graph, float32."""
    return {name: whole(RecipeWeight(r, tensors)) for name, r in model.tensors.items()}


def run(
    device: str, graph: Graph, weights: Mapping[str, np.ndarray], inputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A graph's outputs; of the inputs those that it has."""
    held = {name: weights[name] for name in graph.weights}
    session = DEVICES[device](graph, held)
    try:
        given = {value.name: inputs[value.name] for value in graph.inputs}
        found: dict[str, np.ndarray] = session.run(given)
        return found
    finally:
        session.close()


def rows_of(picture: np.ndarray) -> np.ndarray:
    """[C, H, W] as rows [H * W, C]."""
    return np.ascontiguousarray(picture.reshape(picture.shape[0], -1).T)


def inputs_of(case: str, size: tuple[int, int], captions: int = 5) -> dict[str, np.ndarray]:
    """Random inputs of a denoiser's graph."""
    rng = np.random.default_rng(7)
    channels = DENOISERS[case][1].get("in_channels", 4)
    width = UNET["cross_attention_dim"] if case in UNETS else 20
    return {
        "x": rng.standard_normal((size[0] * size[1], channels)).astype(np.float32),
        "timestep": np.array([[417.0]], np.float32),
        "label": np.array([3], np.int32),
        "caption": rng.standard_normal((captions, width)).astype(np.float32),
        "height": np.array([[640.0]], np.float32),
        "width": np.array([[512.0]], np.float32),
        "aspect": np.array([[1.25]], np.float32),
        "guidance": rng.standard_normal((1, 12)).astype(np.float32),
    }


def expected(module: Any, inputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """What diffusers' module answers: rows [H * W, C']."""
    import torch

    x = torch.from_numpy(inputs["x"].T.reshape(1, -1, *size).copy())
    t = torch.from_numpy(inputs["timestep"][0])
    with torch.no_grad():
        if type(module).__name__ == "DiTTransformer2DModel":
            label = torch.from_numpy(inputs["label"].astype(np.int64))
            y = module(x, timestep=t, class_labels=label).sample
        elif type(module).__name__ == "UNet2DConditionModel":
            told = torch.from_numpy(inputs["guidance"])
            y = module(
                x, t, torch.from_numpy(inputs["caption"])[None],
                timestep_cond=told if module.config.time_cond_proj_dim else None,
            ).sample  # fmt: skip
        else:
            sides = np.concatenate([inputs["height"], inputs["width"]], axis=1)
            size_of = {
                "resolution": torch.from_numpy(sides),
                "aspect_ratio": torch.from_numpy(inputs["aspect"]),
            }
            sized = module.use_additional_conditions
            caption = torch.from_numpy(inputs["caption"])[None]
            y = module(
                x, caption, timestep=t,
                added_cond_kwargs=size_of if sized else {"resolution": None, "aspect_ratio": None},
            ).sample  # fmt: skip
    return rows_of(y[0].numpy())
