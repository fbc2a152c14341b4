"""Pipelines of diffusers that are known, and which files of one a conversion needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...errors import ConvertError
from ..families.config import refused
from ..families.pictures import unknown
from .hub import SIDECARS

INDEX = "model_index.json"
GENERATION = "generation_config.json"  # steps and guidance that a model's maker advises
LIBRARIES = ("diffusers", "transformers")
# Components that a picture does not depend on.
BESIDE = ("feature_extractor", "safety_checker")
SILENT = ("_class_name", "_diffusers_version", "_name_or_path", "requires_safety_checker")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "vocab.json", "merges.txt",
)  # fmt: skip
SCHEDULER_FILE = "scheduler_config.json"
# Folder name of a component -> name of its weights files without what follows.
MODELS = {
    "transformer": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model",
}  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline's class fixes. tokenizers: tokenizer by text encoder. max_tokens: of a
    caption. steps, guidance: defaults, of models that were not distilled for fewer. denoiser: name
    of the component. scheduler: settings that it has whatever the file says."""

    conditioning: str
    steps: int
    guidance: float
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int = 0
    lower: bool = False
    denoiser: str = "transformer"
    scheduler: Mapping[str, int | bool] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """What must be there."""
        named = [name for pair in self.tokenizers.items() for name in pair]
        return (self.denoiser, "vae", "scheduler", *named)


ONE_ENCODER: Mapping[str, str] = {"text_encoder": "tokenizer"}
EMBEDDED_GUIDANCE = 8.5  # default of models that are told the scale
PIPELINES: Mapping[str, Pipeline] = {
    "DiTPipeline": Pipeline("labels", 50, 4.0),
    "LatentConsistencyModelPipeline": Pipeline(
        "captions", 4, 1.0, ONE_ENCODER, 77, denoiser="unet"
    ),
    "PixArtAlphaPipeline": Pipeline("captions", 20, 4.5, ONE_ENCODER, 120, lower=True),
    "PixArtSigmaPipeline": Pipeline("captions", 20, 4.5, ONE_ENCODER, 300, lower=True),
    # its oldest files lack both, and diffusers mends them so
    "StableDiffusionPipeline": Pipeline(
        "captions", 20, 7.5, ONE_ENCODER, 77, denoiser="unet",
        scheduler={"steps_offset": 1, "clip_sample": False},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """model_index.json, checked: the pipeline's class, what that means, and the class of each
    component by name. labels: names of classes, as the file has them."""

    name: str
    pipeline: Pipeline
    classes: Mapping[str, str]
    beside: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def layout_of(index: Mapping[str, Any]) -> Layout:
    """What model_index.json says; ConvertError for a pipeline, component or class that is not
    known, or that is missing."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise unknown(f"{INDEX} names the pipeline", name, PIPELINES)
    pipeline = PIPELINES[name]
    classes, beside, faults = dict[str, str](), list[str](), list[str]()
    labels: Mapping[str, str] = {}
    for key, value in index.items():
        if key in SILENT or value is None:
            continue
        if key == "id2label" and pipeline.conditioning == "labels":
            labels = _labels(value, faults)
        elif value == [None, None]:
            continue
        elif key in BESIDE:
            beside.append(key)
        elif key not in pipeline.components:
            faults.append(
                f"{INDEX} has {key[:64]!r}, which is no component of a {name}: those are "
                f"{list(pipeline.components)}"
            )
        elif (kind := _class(key, value, faults)) is not None:
            classes[key] = kind
    for component in pipeline.components:
        if index.get(component) in (None, [None, None]):
            faults.append(f"{INDEX} has no component {component!r}, which a {name} needs")
    if faults:
        raise refused(faults)
    return Layout(name, pipeline, classes, tuple(beside), labels)


def _class(key: str, value: Any, faults: list[str]) -> str | None:
    """The class of a component, as ["library", "class"]."""
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    if not pair:
        faults.append(f"component {key!r} is {str(value)[:80]!r}, expected [library, class]")
        return None
    library, kind = value
    if library not in LIBRARIES:
        faults.append(
            f"component {key!r} is of {library[:64]!r}, expected one of {LIBRARIES}: code that "
            "comes with a checkpoint is never run"
        )
        return None
    return str(kind)


def _labels(value: Any, faults: list[str]) -> Mapping[str, str]:
    """id2label: name by class number in decimal digits."""
    ok = isinstance(value, dict) and all(
        key.isascii() and key.isdecimal() and len(key) <= 9 and isinstance(text, str)
        for key, text in value.items()
    )
    if ok:
        return dict(value)
    faults.append(f"{INDEX}: 'id2label' is {str(value)[:60]!r}, expected texts by class number")
    return {}


def weights_files(component: str, names: Iterable[str]) -> tuple[str, str] | None:
    """(single file or "", index or "") of a component among the names of its folder; None for
    neither. Float16 variants are taken where there is nothing else."""
    held, stem = set(names), MODELS[component]
    for variant in ("", ".fp16"):
        single = f"{stem}{variant}.safetensors"
        index = f"{stem}.safetensors.index{variant}.json"
        if single in held:
            return single, ""
        if index in held:
            return "", index
    return None


def needed_files(
    layout: Layout, names: Iterable[str], index_of: Callable[[str], Iterable[str]]
) -> list[str]:
    """Paths of a repository's files that a conversion needs. index_of: the shards that an index
    names, by its path."""
    held = set(names)
    wanted = [INDEX, GENERATION, *SIDECARS]
    for component in layout.classes:
        inside = {
            PurePosixPath(name).name for name in held
            if PurePosixPath(name).parent.as_posix() == component
        }  # fmt: skip
        if component == "scheduler":
            wanted.append(f"{component}/{SCHEDULER_FILE}")
        elif component.startswith("tokenizer"):
            wanted += [f"{component}/{name}" for name in TOKENIZER_FILES]
        else:
            found = weights_files(component, inside)
            if found is None:
                raise ConvertError(
                    f"{component} holds {sorted(inside)[:8]}, expected "
                    f"{MODELS[component]}.safetensors",
                    code="checkpoint-weights",
                    hint="edgert reads safetensors only: other formats can run code; take a "
                    "version of the model that has them",
                )
            single, index = (f"{component}/{name}" if name else "" for name in found)
            wanted += [f"{component}/config.json", single or index]
            if index:
                wanted += [f"{component}/{name}" for name in index_of(index)]
    return [name for name in wanted if name in held]
