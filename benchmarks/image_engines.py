"""One denoiser in several programs, for `benchmarks.image_peers`: each engine makes one evaluation
of one branch from the same latents, timestep and condition.

Programs: edgert's bundles, diffusers' module on torch (f32, bf16, compiled f32), and OpenVINO from
that module (f32; int8 by NNCF, weights and activations), where those are installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgert
from edgert.image.calibration import default_prompts
from edgert.image.denoiser import At
from edgert.image.network import Arrays
from edgert.image.pieces import CAPTION, LABEL
from edgert.image.request import resolve

F32 = NDArray[np.float32]
# (latents [1, C, H, W], t, conditions) -> prediction [1, C', H, W]
Evaluate = Callable[[F32, float, Arrays], F32]


@dataclass(frozen=True)
class Engine:
    """name: program and precision. evaluate: one branch, once. close: frees it."""

    name: str
    evaluate: Evaluate
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Inputs:
    """What every engine is given. conditions: label int32 [1], or caption float32 [L, d]."""

    x: F32
    t: float
    conditions: Arrays


def inputs_of(bundle: Path, seed: int = 0) -> Inputs:
    """Noise, and the bundle's own rows for its first default prompt."""
    options: dict[str, Any] = {"threads": 1, "kind": "image"}
    with edgert.load(bundle, **options) as model:
        request = resolve(model.spec, model.latents, default_prompts(model)[0], {"seed": seed})
        network, _ = model.network(request)
        shape = (1, model.latents.channels, *request.grid)
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return Inputs(x, 500.0, network.conditions["cond"])


def edgert_engine(bundle: Path, quant: str, threads: int) -> Engine:
    """A bundle, by the pieces that the sampling loop calls."""
    options: dict[str, Any] = {"threads": threads, "kind": "image"}
    model = edgert.load(bundle, **options)
    request = resolve(model.spec, model.latents, default_prompts(model)[0], {"seed": 0})
    network, _ = model.network(request)
    denoiser = network.denoiser()

    def evaluate(x: F32, t: float, conditions: Arrays) -> F32:
        network.conditions = {"cond": conditions}
        return np.asarray(denoiser.run(x, At(0, t)), np.float32)

    return Engine(f"edgert {quant}", evaluate, model.close)


# --- torch ----------------------------------------------------------------------------------------


def torch_module(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' module, called with tensors alone: (x, t, label or caption) -> prediction."""
    import diffusers
    import torch
    from torch import nn

    kind = diffusers.DiTTransformer2DModel.load_config(folder / "transformer")["_class_name"]
    made = getattr(diffusers, kind).from_pretrained(
        folder / "transformer", torch_dtype=getattr(torch, dtype)
    )

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            return self.inner(x, timestep=t, class_labels=label, return_dict=False)[0]

    class Captioned(Labelled):
        def forward(self, x: Any, t: Any, caption: Any) -> Any:
            sizes = {"resolution": None, "aspect_ratio": None}
            return self.inner(
                x, caption, timestep=t, added_cond_kwargs=sizes, return_dict=False
            )[0]  # fmt: skip

    return (Labelled() if kind == "DiTTransformer2DModel" else Captioned()).eval()


def condition_of(conditions: Arrays) -> NDArray[Any]:
    """The third argument of `torch_module`: int64 [1], or float32 [1, L, d]."""
    if LABEL in conditions:
        return np.asarray(conditions[LABEL], np.int64)
    return np.asarray(conditions[CAPTION], np.float32)[None]


def torch_engine(folder: Path, dtype: str, threads: int, *, compiled: bool = False) -> Engine:
    import torch

    torch.set_num_threads(threads)
    kind, module = getattr(torch, dtype), torch_module(folder, dtype)
    if compiled:
        torch._dynamo.reset()
        module = torch.compile(module)

    def evaluate(x: F32, t: float, conditions: Arrays) -> F32:
        condition = torch.from_numpy(condition_of(conditions))
        given = condition.to(kind) if condition.is_floating_point() else condition
        with torch.inference_mode():
            time = torch.full((len(x),), t)
            y = module(torch.from_numpy(x).to(kind), time, given)
            return np.asarray(y.float().numpy())

    name = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    return Engine(f"torch {name}{' compiled' if compiled else ''}", evaluate)


# --- OpenVINO -------------------------------------------------------------------------------------


def openvino_file(folder: Path, inputs: Inputs, *, int8: bool) -> Path:
    """The module as OpenVINO's files beside the folder, made where they are not there."""
    path = folder.with_name(f"{folder.name}-openvino-{'int8' if int8 else 'f32'}.xml")
    if path.exists():
        return path
    import openvino as ov
    import torch

    example = (
        torch.from_numpy(inputs.x), torch.tensor([inputs.t]),
        torch.from_numpy(condition_of(inputs.conditions)),
    )  # fmt: skip
    if not int8:
        with torch.inference_mode():
            model = ov.convert_model(torch_module(folder), example_input=example)
        captions = inputs.conditions.get(CAPTION)
        if captions is not None:  # other captions have other lengths
            model.reshape({2: ov.PartialShape([1, -1, captions.shape[1]])})
        ov.save_model(model, path, compress_to_fp16=False)
        return path
    import nncf

    model = ov.Core().read_model(openvino_file(folder, inputs, int8=False))
    rng = np.random.default_rng(1)
    items = [
        [
            rng.standard_normal(inputs.x.shape).astype(np.float32), np.array([t], np.float32),
            condition_of(inputs.conditions),
        ]
        for t in np.linspace(20, 980, 16)
    ]  # fmt: skip
    small = nncf.quantize(
        model, nncf.Dataset(items), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(items)
    )
    ov.save_model(small, path, compress_to_fp16=False)
    return path


def openvino_engine(folder: Path, inputs: Inputs, threads: int, *, int8: bool = False) -> Engine:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}  # fmt: skip
    model = ov.Core().compile_model(openvino_file(folder, inputs, int8=int8), "CPU", settings)
    call = model.create_infer_request()

    def evaluate(x: F32, t: float, conditions: Arrays) -> F32:
        given = [x, np.array([t], np.float32), condition_of(conditions)]
        return np.array(call.infer(given)[model.output(0)])

    return Engine(f"openvino {'int8' if int8 else 'f32'}", evaluate)


# --- all of them ----------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    folder: Path, bundles: dict[str, Path], inputs: Inputs, threads: int, names: Sequence[str]
) -> Iterator[tuple[list[Engine], dict[str, str]]]:
    """Engines by name that can be had, and why others cannot."""
    makers: dict[str, Callable[[], Engine]] = {
        "torch f32": lambda: torch_engine(folder, "float32", threads),
        "torch bf16": lambda: torch_engine(folder, "bfloat16", threads),
        "torch f32 compiled": lambda: torch_engine(folder, "float32", threads, compiled=True),
        "openvino f32": lambda: openvino_engine(folder, inputs, threads),
        "openvino int8": lambda: openvino_engine(folder, inputs, threads, int8=True),
    }
    for quant, path in bundles.items():
        makers[f"edgert {quant}"] = lambda q=quant, p=path: edgert_engine(p, q, threads)
    found, missing = list[Engine](), dict[str, str]()
    try:
        for name in names:
            try:
                engine = makers[name]()
                engine.evaluate(inputs.x, inputs.t, inputs.conditions)
                found.append(engine)
            except Exception as error:
                if name.startswith("edgert"):
                    raise
                missing[name] = f"{type(error).__name__}: {str(error)[:200]}"
        yield found, missing
    finally:
        for engine in found:
            engine.close()
