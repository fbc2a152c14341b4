"""Pipelines that lie, lack something or reach out of their folder: one clear error each, and
nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from safetensors.numpy import load_file, save_file

from edgert.errors import ConvertError
from tests.image import pipelines
from tests.image.pipelines import edit_json, write_json

pytest.importorskip("diffusers")

INDEX = "model_index.json"
MODEL = "transformer/diffusion_pytorch_model.safetensors"
Spoil = Callable[[Path], Any]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import diffusers

    folder = tmp_path_factory.mktemp("sound")
    pipelines.write_dit(folder / "dit")
    pipelines.write_pixart(folder / "pixart")
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipelines.write_sd(folder / "sd", "odd", scheduler)
    return {name: folder / name for name in ("dit", "pixart", "sd")}


def index(**changes: Any) -> Spoil:
    return lambda pipe: edit_json(pipe / INDEX, **changes)


def config(component: str, **changes: Any) -> Spoil:
    return lambda pipe: edit_json(pipe / component / "config.json", **changes)


def tensors(change: Callable[[dict[str, np.ndarray]], Any], file: str = MODEL) -> Spoil:
    def spoil(pipe: Path) -> None:
        held = {name: array.copy() for name, array in load_file(pipe / file).items()}
        change(held)
        save_file(held, pipe / file)

    return spoil


def poisoned(held: dict[str, np.ndarray]) -> None:
    held["transformer_blocks.1.ff.net.2.weight"][3, 5] = np.nan


def sharded(**placed: str) -> Spoil:
    """An index instead of the transformer's file, which lies beside it under another name."""

    def spoil(pipe: Path) -> None:
        names = load_file(pipe / MODEL)
        os.rename(pipe / MODEL, pipe / "transformer" / "a.safetensors")
        where = {name: placed.get(name.replace(".", "_"), "a.safetensors") for name in names}
        write_json(pipe / f"{MODEL}.index.json", {"weight_map": where})

    return spoil


def raw(file: str, text: str) -> Spoil:
    return lambda pipe: (pipe / file).write_text(text, encoding="utf-8")


def only_pickles(pipe: Path) -> None:
    os.rename(pipe / MODEL, pipe / "transformer/diffusion_pytorch_model.bin")


def without(name: str) -> Spoil:
    def spoil(pipe: Path) -> None:
        path = pipe / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def dangling(pipe: Path) -> None:
    (pipe / "vae/config.json").unlink()
    (pipe / "vae/config.json").symlink_to(pipe / "nowhere")


def pipe_in_place(pipe: Path) -> None:
    (pipe / "scheduler/scheduler_config.json").unlink()
    os.mkfifo(pipe / "scheduler/scheduler_config.json")


# what is done to which pipeline, and what the error says
CASES: dict[str, tuple[str, Spoil, str]] = {
    "unknown pipeline": (
        "dit", index(_class_name="DreamPipeline"), "pipeline 'DreamPipeline', edgert converts",
    ),
    "no pipeline": ("dit", index(_class_name=...), "the pipeline 'None'"),
    "pipeline of its own code": (
        "dit", index(_class_name=["pipeline", "Own"]), "edgert converts",
    ),
    "index a list": ("dit", raw(INDEX, "[]"), "JSON list, expected an object"),
    "index twice": ("dit", raw(INDEX, '{"a": 1, "a": 2}'), "stands twice"),
    "index deep": ("dit", raw(INDEX, "[" * 100_000), "not JSON"),
    "missing component": ("pixart", index(text_encoder=...), "no component 'text_encoder'"),
    "absent component": ("pixart", index(tokenizer=[None, None]), "no component 'tokenizer'"),
    "unknown component": (
        "dit", index(upscaler=["diffusers", "UNet2DModel"]), "'upscaler', which is no component",
    ),
    "component of its own code": (
        "dit", index(transformer=["my_module", "DiTTransformer2DModel"]), "is never run",
    ),
    "component a path": (
        "dit", index(**{"../../etc": ["diffusers", "X"]}), "which is no component",
    ),
    "component a text": ("dit", index(vae="vae"), "expected .library, class."),
    "unknown class": (
        "dit", index(transformer=["diffusers", "DiTTransformer3DModel"]),
        "is of 'DiTTransformer2DModel'",
    ),
    "unknown denoiser": (
        "dit",
        lambda pipe: (
            index(transformer=["diffusers", "Own"])(pipe),
            config("transformer", _class_name="Own")(pipe),
        ),
        "the denoiser is a 'Own', edgert converts",
    ),
    "unknown autoencoder": (
        "dit",
        lambda pipe: (
            index(vae=["diffusers", "VQModel"])(pipe), config("vae", _class_name="VQModel")(pipe),
        ),
        "the autoencoder is a 'VQModel', edgert converts",
    ),
    "unknown text encoder": (
        "pixart", index(text_encoder=["transformers", "BertModel"]),
        "the text encoder is a 'BertModel'",
    ),
    "labels past the classes": ("dit", index(id2label={"10": "x"}), "class 10, expected 0 to 9"),
    "labels no numbers": ("dit", index(id2label={"-1": "x"}), "texts by class number"),
    "missing folder": ("dit", without("vae"), "has no vae/config.json"),
    "missing scheduler": ("dit", without("scheduler"), "has no scheduler/scheduler_config.json"),
    "missing weights": ("dit", without(MODEL), "expected diffusion_pytorch_model.safetensors"),
    "only pickles": ("dit", only_pickles, "such files can run code|weights only as"),
    "dangling link": ("dit", dangling, "link that leads nowhere"),
    "fifo": ("dit", pipe_in_place, "no regular file"),
    "unknown key": (
        "dit", config("transformer", qk_norm="rms"), "transformer: config key 'qk_norm'",
    ),
    "unknown key of a text encoder": (
        "pixart", config("text_encoder", own_attention=3), "text_encoder: config key",
    ),
    "negative heads": ("dit", config("transformer", num_attention_heads=-3), ">= 1"),
    "no layers": ("dit", config("transformer", num_layers=0), ">= 1"),
    "endless layers": ("dit", config("transformer", num_layers=10**9), "<= 1024"),
    "endless heads": ("dit", config("transformer", attention_head_dim=2**31), "<= 65536"),
    "heads a text": ("dit", config("transformer", num_attention_heads="3"), "Expected `int`"),
    "heads a fraction": ("dit", config("transformer", num_attention_heads=2.5), "Expected `int`"),
    "endless picture": ("dit", config("transformer", sample_size=16384), "pixels a side"),
    "size without patches": ("dit", config("transformer", sample_size=9), "multiple of"),
    "patches of nothing": ("dit", config("transformer", patch_size=0), ">= 1"),
    "odd channels": ("dit", config("transformer", out_channels=7), "'out_channels' is 7"),
    "other channels": ("dit", config("transformer", in_channels=5), "latents have 4 channels"),
    "eps of nothing": ("dit", config("transformer", norm_eps=0.0), "norm_eps"),
    "eps not a number": ("dit", config("transformer", norm_eps=float("nan")), "not JSON"),
    "norms with weights": (
        "dit", config("transformer", norm_elementwise_affine=True), "norm_elementwise_affine",
    ),
    "activation": ("dit", config("transformer", activation_fn="geglu"), "activation_fn"),
    "caption width": (
        "pixart", config("transformer", caption_channels=24), "text_encoder gives rows of 20",
    ),
    "captions of nothing": (
        "pixart", config("transformer", caption_channels=None), "'caption_channels' is null",
    ),
    "interpolation": (
        "pixart", config("transformer", interpolation_scale=0), "interpolation_scale",
    ),
    "interpolation not finite": (
        "pixart",
        lambda pipe: raw("transformer/config.json", '{"interpolation_scale": 1e999}')(pipe),
        "interpolation_scale",
    ),
    "odd buckets": (
        "pixart", config("text_encoder", relative_attention_num_buckets=7), "relative buckets",
    ),
    "a gate that is none": (
        "pixart", config("text_encoder", feed_forward_proj="gated-relu"), "feed_forward_proj",
    ),
    "a gate that differs": (
        "pixart", config("text_encoder", is_gated_act=False), "is_gated_act",
    ),
    "fewer words than tokens": (
        "pixart",
        lambda pipe: (
            config("text_encoder", vocab_size=20)(pipe),
            tensors(
                lambda held: held.update({"shared.weight": held["shared.weight"][:20]}),
                "text_encoder/model.safetensors",
            )(pipe),
        ),
        "the logits have 0 to 19",
    ),
    "missing tensor": (
        "dit", tensors(lambda held: held.pop("pos_embed.proj.weight")),
        "'transformer/pos_embed.proj.weight' .* is missing",
    ),
    "foreign tensor": (
        "dit", tensors(lambda held: held.update(own=np.zeros(3, np.float32))),
        "'transformer/own' .* is unexpected",
    ),
    "tensor of another shape": (
        "dit",
        tensors(lambda held: held.update({"proj_out_1.bias": np.zeros(3, np.float32)})),
        "'transformer/proj_out_1.bias' is .3., expected .48.",
    ),
    "tensor of integers": (
        "dit", tensors(lambda held: held.update({"proj_out_1.bias": np.zeros(48, np.int32)})),
        "is I32, expected one of",
    ),
    "weights not a number": ("dit", tensors(poisoned), "holds 1 NaN"),
    "weights cut": (
        "dit", lambda pipe: os.truncate(pipe / MODEL, 3000), "safetensors",
    ),
    "shard outside": ("dit", sharded(proj_out_1_bias="../../secret.safetensors"), r"\.\./\.\./"),
    "shard absolute": ("dit", sharded(proj_out_1_bias="/etc/x.safetensors"), "/etc/x"),
    "shard elsewhere": ("dit", sharded(proj_out_1_bias="b/x.safetensors"), "the shard index names"),
    "shard a pickle": ("dit", sharded(proj_out_1_bias="a.bin"), "expected a .safetensors file"),
    "shard missing": ("dit", sharded(proj_out_1_bias="b.safetensors"), "'b.safetensors' is missi"),
    "scheduler with a table": (
        "dit",
        lambda pipe: edit_json(pipe / "scheduler/scheduler_config.json", trained_betas=[0.1]),
        "'trained_betas' is",
    ),
    "scheduler of another class": (
        "dit", index(scheduler=["diffusers", "DDIMScheduler"]), "says 'DDIMScheduler'",
    ),
    "unet of another model": (
        "sd", config("unet", addition_embed_type="text_time"), "Stable Diffusion XL is one",
    ),
    "unet of a mask": ("sd", config("unet", in_channels=9), "'out_channels' is 4, expected"),
    "unet of other channels": (
        "sd", config("unet", in_channels=5, out_channels=5), "latents have 4 channels, the unet",
    ),
    "unet without a size": ("sd", config("unet", sample_size=None), "'sample_size' is None"),
    "unet of a size that is not halved": (
        "sd", config("unet", sample_size=10), "multiple of 4, for 3 levels",
    ),
    "unet of no blocks": (
        "sd", config("unet", block_out_channels=[]), "has 0 widths, expected 1 to 8",
    ),
    "unet of endless blocks": (
        "sd", config("unet", block_out_channels=[8] * 99), "has 99 widths, expected 1 to 8",
    ),
    "unet of too few blocks": (
        "sd", config("unet", down_block_types=["DownBlock2D"]), "has 1 entries, expected 3",
    ),
    "unet of too many heads": (
        "sd", config("unet", attention_head_dim=[1, 1, 1, 1]), "has 4 entries, expected 3",
    ),
    "unet of unknown blocks": (
        "sd", config("unet", up_block_types=["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]),
        "has 'AttnUpBlock2D', expected 'UpBlock2D' or 'CrossAttnUpBlock2D'",
    ),
    "unet of an unknown middle": (
        "sd", config("unet", mid_block_type="UNetMidBlock2D"), "has 'UNetMidBlock2D'",
    ),
    "unet that reads no captions": (
        "sd",
        config(
            "unet", mid_block_type=None, down_block_types=["DownBlock2D"] * 3,
            up_block_types=["UpBlock2D"] * 3,
        ),
        "no block reads captions",
    ),
    "unet of an unknown key": ("sd", config("unet", gate=1), "unet: config key 'gate'"),
    "unet with labels": ("sd", config("unet", num_class_embeds=10), "'num_class_embeds' is 10"),
    "unet of other time": (
        "sd", config("unet", resnet_time_scale_shift="scale_shift"), "resnet_time_scale_shift",
    ),
    "unet of heads that do not divide": (
        "sd", config("unet", attention_head_dim=5), "has 8, expected multiples",
    ),
    "unet of no heads": ("sd", config("unet", attention_head_dim=[1, 0, 1]), ">= 1"),
    "unet of groups that do not divide": (
        "sd", config("unet", norm_num_groups=3), "has 8, expected multiples",
    ),
    "unet of several captions": (
        "sd", config("unet", cross_attention_dim=[24, 20, 24]), "expected one width",
    ),
    "unet of other captions": (
        "sd", config("unet", cross_attention_dim=20), "text_encoder gives rows of 24, the unet",
    ),
    "unet of endless layers": (
        "sd", config("unet", layers_per_block=10**9), "<= 1024",
    ),
    "unet of frequencies past their number": ("sd", config("unet", freq_shift=4), "freq_shift"),
    "unet of another shape": (
        "sd",
        tensors(
            lambda held: held.update({"conv_in.weight": np.zeros((8, 4, 1, 1), np.float32)}),
            "unet/diffusion_pytorch_model.safetensors",
        ),
        "'unet/conv_in.weight' is .8, 4, 1, 1., expected .8, 4, 3, 3.",
    ),
    "transformer in place of a unet": (
        "sd", index(transformer=["diffusers", "DiTTransformer2DModel"]), "which is no component",
    ),
    "image encoder": (
        "sd", index(image_encoder=["transformers", "CLIPVisionModel"]), "which is no component",
    ),
    "scheduler with an unknown key": (
        "dit",
        lambda pipe: edit_json(pipe / "scheduler/scheduler_config.json", wobble=2),
        "unknown key 'wobble'",
    ),
    "scheduler that goes nowhere": (
        "dit",
        lambda pipe: edit_json(pipe / "scheduler/scheduler_config.json", beta_end=-1.0),
        "beta_end",
    ),
    "scheduler of an unknown class": (
        "dit",
        lambda pipe: (
            edit_json(pipe / "scheduler/scheduler_config.json", _class_name="OwnScheduler"),
            index(scheduler=["diffusers", "OwnScheduler"])(pipe),
        ),
        "the scheduler is 'OwnScheduler', expected one of DDIMScheduler",
    ),
    "no tokenizer": ("pixart", without("tokenizer/tokenizer.json"), "expected tokenizer.json"),
    "tokenizer not JSON": ("pixart", raw("tokenizer/tokenizer.json", "{"), "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_spoilt_pipeline_is_refused(case: str, sound: dict[str, Path], tmp_path: Path) -> None:
    which, spoil, message = CASES[case]
    pipe, out = tmp_path / "pipe", tmp_path / "out" / "x.edge"
    shutil.copytree(sound[which], pipe)
    spoil(pipe)
    out.parent.mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ConvertError, match=message):
        convert(pipe, out, quant="f32", progress=False)
    left = [path for path in out.parent.iterdir() if not path.name.endswith(".stage")]
    assert left == []
    if case != "weights not a number":
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_all_faults_of_a_pipeline_come_in_one_error(sound: dict[str, Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    shutil.copytree(sound["pixart"], pipe)
    config("transformer", own=1)(pipe)
    config("text_encoder", d_model=-1)(pipe)
    with pytest.raises(ConvertError) as error:
        convert(pipe, tmp_path / "x.edge", progress=False)
    assert "transformer: config key 'own'" in error.value.message
    assert "text_encoder: config 'd_model' is -1" in error.value.message


def test_components_that_pictures_do_not_need_are_left_out_aloud(
    sound: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tmp_path / "pipe"
    shutil.copytree(sound["dit"], pipe)
    index(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])(pipe)
    convert(pipe, tmp_path / "x.edge", quant="f16", progress=False)
    assert "the component safety_checker is left out" in caplog.text
    told = json.loads((tmp_path / "x.edge/manifest.json").read_text())
    assert "safety_checker" not in json.dumps(told["parts"])
