"""The exported folder: a diffusers directory in bfloat16, with tokenizer, autoencoder and card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .autoencoder import CHANNELS, Autoencoder
from .card import model_card
from .denoiser import DenoiserConfig, transformer_config
from .sample import scheduler_config
from .text_encoder import TextConfig, exported, imported, text_config
from .tokenizer import save_tokenizer
from .train import Model

INDEX = {
    "_class_name": "PixArtSigmaPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "TAEF2"],
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def autoencoder_config(latents: dict[str, float]) -> dict:
    """config.json of `vae/`: z = (latent - shift_factor) * scaling_factor."""
    return {
        "_class_name": "TAEF2",
        "latent_channels": CHANNELS,
        "scaling_factor": latents["scale"],
        "shift_factor": latents["shift"],
    }


def autoencoder_tensors(data: Path) -> dict[str, Tensor]:
    """Both files of `vae-taef2` as they are, names beginning with "encoder." and "decoder."."""
    return {
        f"{half}.{name}": tensor
        for half in ("encoder", "decoder")
        for name, tensor in load_file(data / "vae-taef2" / f"taef2_{half}.safetensors").items()
    }


def export(
    model: Model,
    tokenizer: object,
    latents: dict[str, float],
    results: dict,
    data: Path,
    out: Path,
    *,
    notes: dict | None = None,
) -> None:
    """Write the folder aside, read it back, then put it in place of an older one."""
    aside = out.with_name(out.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    transformer = _rounded(model.denoiser.state_dict())
    _save(aside / "transformer" / WEIGHTS, transformer)
    _json(aside / "transformer" / "config.json", transformer_config(model.denoiser.config))
    _save(aside / "text_encoder" / "model.safetensors", _rounded(exported(model.text)))
    _json(aside / "text_encoder" / "config.json", text_config(model.text.config))
    save_tokenizer(tokenizer, aside / "tokenizer")  # type: ignore[arg-type]
    shift = results["sampling"]["shift"]
    _json(aside / "scheduler" / "scheduler_config.json", scheduler_config(shift))
    _save(aside / "vae" / WEIGHTS, autoencoder_tensors(data))
    _json(aside / "vae" / "config.json", autoencoder_config(latents))
    advice = results["sampling"]
    _json(
        aside / "generation_config.json",
        {"num_inference_steps": advice["steps"], "guidance_scale": advice["guidance"]},
    )
    _json(aside / "model_index.json", INDEX)
    (aside / "README.md").write_text(model_card(results, notes or {}))
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)


def load_export(folder: Path) -> tuple[Model, Autoencoder]:
    """The exported networks back in this recipe's own form, float32."""
    raw = json.loads((folder / "transformer" / "config.json").read_text())
    denoiser = DenoiserConfig(
        heads=raw["num_attention_heads"],
        head_size=raw["attention_head_dim"],
        layers=raw["num_layers"],
        channels=raw["in_channels"],
        grid=raw["sample_size"],
        caption=raw["caption_channels"],
    )
    raw = json.loads((folder / "text_encoder" / "config.json").read_text())
    text = TextConfig(
        vocab=raw["vocab_size"],
        width=raw["d_model"],
        layers=raw["num_layers"],
        heads=raw["num_heads"],
        head_size=raw["d_kv"],
        ffn=raw["d_ff"],
    )
    model = Model(text, denoiser)
    model.denoiser.load_state_dict(load_file(folder / "transformer" / WEIGHTS))
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    model.text.load_state_dict(imported(tensors, text))
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(load_file(folder / "vae" / WEIGHTS))
    raw = json.loads((folder / "vae" / "config.json").read_text())
    autoencoder.shift, autoencoder.scale = raw["shift_factor"], raw["scaling_factor"]
    return model.eval().requires_grad_(False), autoencoder.eval().requires_grad_(False)


def _rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().to(torch.bfloat16).contiguous() for name, t in tensors.items()}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write and compare with what is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes it for the owner alone
    back = load_file(path)
    wrong = [name for name in tensors if not back[name].equal(tensors[name])]
    if wrong:
        raise OSError(f"{path} differs from memory in {wrong[0]} and {len(wrong) - 1} more")


def _json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
