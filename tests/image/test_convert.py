"""Pipelines of diffusers become bundles: parts, manifest, encodings, commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

from edgert.bundle import Bundle
from edgert.bundle.image_spec import CaptionSpec, LatentSpec
from edgert.cli import run
from edgert.errors import ConvertError
from edgert.evaluation.verify import verify_bundle
from edgert.session import SessionOptions
from edgert.session.reference import ReferenceSession
from tests.closeness import assert_close
from tests.image import models, pipelines

pytest.importorskip("diffusers")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dit")
    return pipelines.write_dit(folder / "pipe"), folder / "pipe"


@pytest.fixture(scope="session")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pixart")
    return (*pipelines.write_pixart(folder / "pipe"), folder / "pipe")


def run_part(bundle: Bundle, part: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    session = ReferenceSession(bundle.graph(part), bundle.weights(part))
    return session.run({value.name: inputs[value.name] for value in session.graph.inputs})


def test_a_captioned_pipeline_becomes_a_bundle(pixart: Any, tmp_path: Path) -> None:
    module, encoder, source = pixart
    report = convert(source, tmp_path / "x.edge", quant="f32", progress=False)
    assert report.family == "PixArtSigmaPipeline"
    with Bundle.open(tmp_path / "x.edge") as bundle:
        manifest, inputs = bundle.manifest, models.inputs_of("pixart-sigma", (8, 8))
        roles = {name: part.role for name, part in manifest.parts.items()}
        assert roles == {
            "denoiser": "denoiser", "text_encoder": "text-encoder", "decoder": "decoder",
            "encoder": "encoder",
        }  # fmt: skip
        got = run_part(bundle, "denoiser", inputs)["out"]
        assert_close("denoiser", models.expected(module, inputs, (8, 8)), got, rms=1e-4)
        ids = np.int32([31, 4, 1])
        import torch

        with torch.no_grad():
            want = encoder(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        rows = run_part(bundle, "text_encoder", {"tokens": ids})["hidden"]
        assert_close("text encoder", want.numpy(), rows, rms=1e-4)
    assert manifest.kind == "image"
    assert manifest.image is not None
    spec = manifest.image
    assert spec.conditioning == "captions"
    assert spec.null_label is None
    assert spec.captions == {"text_encoder": CaptionSpec(300, 1, lower=True)}
    assert spec.tokenizers == {"text_encoder": "text_encoder.tokenizer.json"}
    assert spec.latents == LatentSpec(4, 8, 0.5, 0.1)
    assert spec.defaults == {"steps": 20, "guidance": 4.5, "width": 64, "height": 64}
    assert spec.scheduler["_class_name"] == "DPMSolverMultistepScheduler"
    assert spec.scheduler["prediction_type"] == "epsilon"
    assert "trained_betas" not in spec.scheduler
    assert "lambda_min_clipped" not in spec.scheduler
    assert "transformer/config.json" in manifest.provenance.sources
    assert "tokenizer/tokenizer.json" in manifest.provenance.sources


def test_a_class_conditional_pipeline_becomes_a_bundle(dit: Any, tmp_path: Path) -> None:
    module, source = dit
    convert(source, tmp_path / "x.edge", quant="f32", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        spec, inputs = bundle.manifest.image, models.inputs_of("dit", (8, 8))
        got = run_part(bundle, "denoiser", inputs)["out"]
        assert_close("denoiser", models.expected(module, inputs, (8, 8)), got, rms=1e-4)
    assert spec is not None
    assert spec.conditioning == "labels"
    assert spec.null_label == 10
    assert spec.labels == {"cat": 0, "tabby": 0, "dog": 1}
    assert spec.defaults["guidance"] == 4.0
    assert not spec.tokenizers


def test_the_older_class_of_both_transformers_is_read(dit: Any, tmp_path: Path) -> None:
    _, source = dit
    shutil.copytree(source, tmp_path / "pipe")
    pipelines.edit_json(
        tmp_path / "pipe/transformer/config.json", _class_name="Transformer2DModel",
        cross_attention_dim=None, double_self_attention=False, num_vector_embeds=None,
        only_cross_attention=False, use_linear_projection=False, attention_type="default",
        caption_channels=None,
    )  # fmt: skip
    hashes = []
    for name, folder in (("new", source), ("old", tmp_path / "pipe")):
        convert(folder, tmp_path / f"{name}.edge", quant="f16", progress=False)
        with Bundle.open(tmp_path / f"{name}.edge") as bundle:
            files = bundle.manifest.files
            hashes.append(
                [files[f"denoiser.{end}"] for end in ("weights.safetensors", "graph.json")]
            )
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("variant", ["fp16", "sharded", "sharded-fp16"])
def test_shards_and_float16_variants_are_read(variant: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_shard_size": "20KB"} if "sharded" in variant else {}
    if "fp16" in variant:
        options["variant"] = "fp16"
    module = pipelines.write_dit(tmp_path / "pipe", **options)
    names = [path.name for path in (tmp_path / "pipe/transformer").iterdir()]
    assert ("fp16" in variant) == any("fp16" in name for name in names), names
    assert ("sharded" in variant) == any("index" in name for name in names), names
    convert(tmp_path / "pipe", tmp_path / "x.edge", quant="f32", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        inputs = models.inputs_of("dit", (8, 8))
        got = run_part(bundle, "denoiser", inputs)["out"]
    assert_close(variant, models.expected(module, inputs, (8, 8)), got, rms=1e-4)


TINY: dict[str, Any] = {
    "encoder_block_out_channels": (16, 16, 16, 16), "decoder_block_out_channels": (16, 16, 16, 16),
    "num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1), "scaling_factor": 0.7,
}  # fmt: skip
KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "scaling_factor": 0.2,
    "shift_factor": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "latents"),
    [
        ("AutoencoderTiny", TINY, LatentSpec(4, 8, 0.7, 0.0, 0.0, 1.0)),
        ("AutoencoderKL", KL, LatentSpec(4, 8, 0.2, 0.3)),
    ],
)
def test_autoencoders_of_diffusers_are_decoder_and_encoder(
    dit: Any, tmp_path: Path, kind: str, config: dict[str, Any], latents: LatentSpec
) -> None:
    import diffusers

    pipe = tmp_path / "pipe"
    shutil.copytree(dit[1], pipe, ignore=shutil.ignore_patterns("vae"))
    vae = models.noisy(getattr(diffusers, kind)(**config), 6)
    vae.save_pretrained(pipe / "vae")
    pipelines.edit_json(pipe / "model_index.json", vae=["diffusers", kind])
    convert(pipe, tmp_path / "x.edge", quant="f32", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        assert bundle.manifest.image is not None
        assert bundle.manifest.image.latents == latents
        rows = np.random.default_rng(8).standard_normal((64, 4)).astype(np.float32)
        (got,) = run_part(bundle, "decoder", {"latents": rows}).values()
    import torch

    with torch.no_grad():
        z = torch.from_numpy(rows.T.reshape(1, 4, 8, 8).copy())
        wanted = models.rows_of(vae.decode(z).sample[0].numpy())
    pixels = (got - latents.low) / (latents.high - latents.low)
    assert_close(kind, wanted / 2 + 0.5, pixels, rms=1e-4)


def test_conversion_of_pictures_needs_no_framework(dit: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgert.converters.convert import convert\n"
        "convert(Path(sys.argv[1]), sys.argv[2], progress=False)\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'onnx', 'onnxruntime', 'numba',"
        " 'huggingface_hub', 'PIL'} & set(sys.modules)))"
    )
    import diffusers

    pipe = tmp_path / "pipe"
    shutil.copytree(dit[1], pipe, ignore=shutil.ignore_patterns("vae"))
    diffusers.AutoencoderTiny(**TINY).save_pretrained(pipe / "vae")
    pipelines.edit_json(pipe / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    ran = subprocess.run(
        [sys.executable, "-c", code, pipe, tmp_path / "m.edge"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == "[]"


FLOW: dict[str, Any] = {
    **models.BLOCK, "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 32,
    "out_channels": 32, "patch_size": 1, "cross_attention_dim": 128, "caption_channels": 20,
    "use_additional_conditions": False, "interpolation_scale": 1,
}  # fmt: skip


@pytest.mark.parametrize("quant", ["f32", "int8", "int4"])
def test_a_flow_over_tiny_latents_runs_on_the_cpu_as_in_numpy(tmp_path: Path, quant: str) -> None:
    import diffusers

    module = models.noisy(diffusers.PixArtTransformer2DModel(**FLOW), 9)
    pipelines.write_flow(tmp_path / "pipe", module)
    out = tmp_path / "x.edge"
    convert(tmp_path / "pipe", out, quant=quant, progress=False)
    report = verify_bundle(out, SessionOptions("cpu", threads=1))
    assert report.ok, report.problems()
    assert "denoiser on cpu" in {check.subject for check in report.checks}
    with Bundle.open(out) as bundle:
        spec = bundle.manifest.image
    assert spec is not None
    assert spec.scheduler == {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert spec.captions["text_encoder"].end_id == 1
    assert spec.defaults["height"] == 64


def test_a_tokenizer_that_adds_something_else_is_refused(tmp_path: Path) -> None:
    import diffusers

    module = models.noisy(diffusers.PixArtTransformer2DModel(**FLOW), 9)
    pipelines.write_flow(tmp_path / "pipe", module)
    pipelines.edit_json(tmp_path / "pipe/tokenizer/tokenizer_config.json", eos_token="<pad>")
    with pytest.raises(ConvertError, match=r"makes \[.*\] of 'a picture', expected"):
        convert(tmp_path / "pipe", tmp_path / "x.edge", progress=False)


WIDE = {**models.BLOCK, "num_attention_heads": 2, "attention_head_dim": 32}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with matrices that are worth codes."""
    path = tmp_path_factory.mktemp("wide") / "pipe"
    models.DENOISERS["dit-wide"] = (
        "DiTTransformer2DModel", {**WIDE, "num_embeds_ada_norm": 10}
    )  # fmt: skip
    try:
        pipelines.write_dit(path, "dit-wide")
    finally:
        del models.DENOISERS["dit-wide"]
    return path


def test_products_get_codes_and_small_matrices_16_bits(wide: Path, tmp_path: Path) -> None:
    report = convert(wide, tmp_path / "x.edge", quant="int4", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        weights = bundle.graph("denoiser").weights
        decoder = bundle.graph("decoder").weights
        assert bundle.manifest.report["method"] == "rtn"
    found = {name: weights[name].encoding for name in weights}
    assert found["blocks.0.attention.q"] == found["blocks.1.ff.down"] == "int4-g32"
    assert found["blocks.0.modulation"] == found["blocks.0.time.1"] == "int8-g32"
    assert found["patch"] == found["head"] == "f16"
    assert found["patch_bias"] == "f32"
    assert decoder["conv"].encoding == "f16"
    assert decoder["conv_bias"].encoding == "f32"
    assert "golden prompts: none" in report.summary()


def test_int8_is_by_channels_where_inputs_are_even(wide: Path, tmp_path: Path) -> None:
    convert(wide, tmp_path / "x.edge", quant="int8", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        found = {name: w.encoding for name, w in bundle.graph("denoiser").weights.items()}
    assert found["blocks.0.attention.q"] == found["blocks.1.ff.up"] == "int8-channel"
    assert found["blocks.1.ff.down"] == found["blocks.0.modulation"] == "int8-g32"
    assert found["patch"] == "f16"
    convert(wide, tmp_path / "x.edge", quant="int8-g32", progress=False, force=True)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        found = {name: w.encoding for name, w in bundle.graph("denoiser").weights.items()}
    assert found["blocks.0.attention.q"] == "int8-g32"


def test_text_encoders_are_not_stored_by_channels(pixart: Any, tmp_path: Path) -> None:
    *_, source = pixart
    convert(source, tmp_path / "x.edge", quant="int8", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        found = {w.encoding for w in bundle.graph("text_encoder").weights.values()}
    assert "int8-channel" not in found


def test_tables_of_modulations_and_distances_stay_f32(pixart: Any, tmp_path: Path) -> None:
    *_, source = pixart
    convert(source, tmp_path / "x.edge", quant="int8", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        denoiser, encoder = bundle.graph("denoiser"), bundle.graph("text_encoder")
    assert denoiser.weights["blocks.0.table"].encoding == "f32"
    assert encoder.weights["relative_bias"].encoding == "f32"
    assert encoder.weights["layers.0.q"].encoding == "f16"


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptq"}, {"recipe": "auto"}, {"recipe": "compot-int4"}, {"compot": 0.2},
        {"heal": 1000}, {"quant": "mixed", "budget_mb": 1.0}, {"budget_mb": 1.0},
        {"report": "page"},
    ],
)  # fmt: skip
def test_options_that_need_text_are_refused(
    dit: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConvertError, match="for a picture pipeline") as error:
        convert(dit[1], tmp_path / "x.edge", progress=False, **options)
    assert error.value.code == "picture-option"
    assert list(tmp_path.iterdir()) == []


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints that ends well."""
    capsys.readouterr()
    code = run([str(word) for word in words])
    output = capsys.readouterr()
    assert code == 0, output.out + output.err
    return output.out


def test_commands_convert_inspect_and_verify_a_pipeline(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.edge"
    told(capsys, "convert", wide, "-o", out, "--quant", "int8", "--json")
    text = told(capsys, "inspect", out)
    for line in ("image, 64 x 64", "denoiser", "decoder", "labels", "DPMSolverMultistep"):
        assert line in text
    found = json.loads(told(capsys, "inspect", out, "--json"))
    assert found["model"] == "image"
    assert set(found["parts"]) == {"denoiser", "decoder", "encoder"}
    assert "image, 64 x 64" in told(capsys, "inspect", wide)
    checked = told(capsys, "verify", out, "--values")
    assert "denoiser.weights.safetensors" in checked


def test_verify_compares_parts_with_the_numpy_path(
    pixart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, source = pixart
    convert(source, tmp_path / "x.edge", quant="f32", progress=False)
    options = SessionOptions("reference")
    report = verify_bundle(tmp_path / "x.edge", options)
    assert report.ok
    subjects = {check.subject for check in report.checks}
    parts = {"denoiser", "text_encoder", "decoder", "encoder"}
    assert {f"{part} on reference" for part in parts} | {"tokenizer of text_encoder"} <= subjects
    answers = ReferenceSession.run
    calls: list[str] = []

    def wrong(self: ReferenceSession, arrays: Any, graph: Any = None) -> Any:
        calls.append(self.graph.name)
        found = answers(self, arrays, graph)
        return {n: v + (calls.count("decoder") == 2) for n, v in found.items()}

    monkeypatch.setattr(ReferenceSession, "run", wrong)
    (problem, *_) = verify_bundle(tmp_path / "x.edge", options).problems()
    assert problem.subject == "decoder on reference"
    assert "differs from the NumPy path" in problem.message


def test_a_makers_steps_and_guidance_are_the_bundles(dit: Any, tmp_path: Path) -> None:
    import shutil

    source = tmp_path / "pipe"
    shutil.copytree(dit[1], source)
    advice = {"num_inference_steps": 28, "guidance_scale": 3}
    pipelines.write_json(source / "generation_config.json", advice)
    convert(source, tmp_path / "x.edge", quant="f32", progress=False)
    with Bundle.open(tmp_path / "x.edge") as bundle:
        assert bundle.manifest.image is not None
        found = bundle.manifest.image.defaults
    assert (found["steps"], found["guidance"]) == (28, 3.0)
    for wrong in ({"num_inference_steps": 0}, {"guidance_scale": "3"}, {"steps": 3}):
        pipelines.write_json(source / "generation_config.json", wrong)
        with pytest.raises(ConvertError, match=r"generation_config\.json"):
            convert(source, tmp_path / "y.edge", quant="f32", progress=False)
