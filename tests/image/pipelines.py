"""Tiny picture pipelines as diffusers saves them, with toy autoencoders and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.families import pictures, taef2
from edgert.converters.families.recipe import FamilyModel
from safetensors.numpy import save_file

from tests.image import models

pictures.AUTOENCODERS.setdefault("ToyAutoencoder", "tests.image.toy_autoencoder")

VAE: dict[str, Any] = {
    "_class_name": "ToyAutoencoder", "_diffusers_version": "0.42.0", "latent_channels": 4,
}  # fmt: skip
LABELS = {"0": "cat, tabby", "1": "dog"}
# Letters and a few words: what T5's tokenizer has, small. Ids as T5's: padding, end, unknown.
PIECES = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁cat", "▁a", "▁on"]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Exchange keys of a JSON file; ... takes one out."""
    value = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: held for key, held in value.items() if held is not ...})


def t5_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a small Unigram model."""
    blank = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    vocab = [[text, 0.0 if i < 3 else -1.0 - len(text) * 0.1] for i, text in enumerate(PIECES)]
    added = [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for i, text in enumerate(PIECES[:3])
    ]  # fmt: skip
    return {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": blank,
        "post_processor": None, "decoder": blank,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }  # fmt: skip


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer over letters and a word, of 64 tokens as the text encoder has them."""
    from transformers import CLIPTokenizer

    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    tokens += [f"<{n}>" for n in range(62 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: n for n, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


TINY_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (4, 4, 4, 4), "decoder_block_out_channels": (4, 4, 4, 4),
    "num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1),
}  # fmt: skip
KL_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2,
}  # fmt: skip


def write_sd(path: Path, case: str, scheduler: Any, *, kind: str = "StableDiffusionPipeline",
             vae: tuple[str, dict[str, Any]] = ("AutoencoderTiny", TINY_VAE)) -> Any:  # fmt: skip
    """A pipeline of Stable Diffusion around the UNet `case`, which diffusers writes; the same."""
    import diffusers
    import torch

    torch.manual_seed(4)
    pipe = getattr(diffusers, kind)(
        vae=models.noisy(getattr(diffusers, vae[0])(**vae[1]), 4),
        text_encoder=models.clip("clip"), tokenizer=clip_tokenizer(path.with_name("clip")),
        unet=models.denoiser(case), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(path)
    return pipe


def write_vae(folder: Path) -> dict[str, np.ndarray]:
    """A toy autoencoder's folder; its tensors."""
    rng = np.random.default_rng(5)
    shapes = {
        "decoder.weight": (3, 4, 3, 3), "decoder.bias": (3,), "encoder.weight": (4, 3, 8, 8),
        "encoder.bias": (4,),
    }  # fmt: skip
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    write_json(folder / "config.json", VAE)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return tensors


def write_scheduler(folder: Path) -> None:
    import diffusers

    diffusers.DPMSolverMultistepScheduler(prediction_type="epsilon").save_config(folder)


def write_dit(path: Path, case: str = "dit", **options: Any) -> Any:
    """A class-conditional pipeline; the transformer. options: of save_pretrained."""
    module = models.denoiser(case)
    module.save_pretrained(path / "transformer", **options)
    write_vae(path / "vae")
    write_scheduler(path / "scheduler")
    index = {
        "_class_name": "DiTPipeline", "_diffusers_version": "0.42.0", "id2label": LABELS,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "ToyAutoencoder"],
    }  # fmt: skip
    write_json(path / "model_index.json", index)
    return module


def write_pixart(path: Path, case: str = "pixart-sigma", **options: Any) -> tuple[Any, Any]:
    """A captioned pipeline; the transformer and the text encoder."""
    module, encoder = models.denoiser(case), models.t5("t5-1.1")
    module.save_pretrained(path / "transformer", **options)
    encoder.save_pretrained(path / "text_encoder")
    write_vae(path / "vae")
    write_scheduler(path / "scheduler")
    write_json(path / "tokenizer" / "tokenizer.json", t5_tokenizer())
    kind = "Sigma" if "sigma" in case else "Alpha"
    index = {
        "_class_name": f"PixArt{kind}Pipeline", "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "ToyAutoencoder"],
        "safety_checker": [None, None], "requires_safety_checker": True,
    }  # fmt: skip
    write_json(path / "model_index.json", index)
    return module, encoder


def random_tensors(model: FamilyModel, seed: int) -> dict[str, np.ndarray]:
    """Random values for every tensor that a family reads."""
    rng = np.random.default_rng(seed)
    parts = {part.name: part for r in model.tensors.values() for part in r.parts}
    return {
        name: (rng.standard_normal(part.shape) * part.shape[-1] ** -0.5).astype(np.float32)
        for name, part in parts.items()
    }


def write_flow(path: Path, module: Any) -> None:
    """A captioned pipeline of a flow over TAEF2's latents, with a tokenizer of no named class, as
    recipes write them. module: the transformer, for captions of 20 channels."""
    encoder, vae = models.t5("t5-1.1"), {"_class_name": "TAEF2", "latent_channels": 32}
    vae |= {"scaling_factor": 0.6, "shift_factor": 0.2}
    module.save_pretrained(path / "transformer")
    encoder.save_pretrained(path / "text_encoder")
    tensors = random_tensors(taef2.decoder(vae, 8, 8, []), 1)
    tensors |= random_tensors(taef2.encoder(vae, 8, 8, []), 2)
    write_json(path / "vae" / "config.json", vae)
    save_file(tensors, path / "vae" / "diffusion_pytorch_model.safetensors")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    tokenizer = t5_tokenizer()
    end = {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "special_tokens": end, "pair": [],
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
        ],
    }  # fmt: skip
    write_json(path / "tokenizer" / "tokenizer.json", tokenizer)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(path / "tokenizer" / "tokenizer_config.json", names)
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "TAEF2"],
    }
    write_json(path / "model_index.json", index)
