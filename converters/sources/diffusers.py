"""Pipelines of diffusers: a directory with model_index.json, or a hub id.

Read are the configs, safetensors weights and tokenizer files of the components that a picture
depends on. Code in a pipeline is never run and pickles are never opened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import limits
from ...bundle.image_spec import ImageSpec, LatentSpec
from ...errors import ConvertError
from ...graph import Graph
from ...image.pieces import GUIDANCE
from ...notices import notice
from ...storage.hash_cache import HashCache
from ..families import pictures
from ..families.config import refused
from ..families.recipe import FamilyModel, Part, Recipe
from .base import Image, PlannedPart, Source, SourceTensor, Text
from .caption_tokenizer import captions
from .checkpoint import Checkpoint
from .diffusers_hub import pipeline_folder, recognises
from .files import index_faults, json_object, no_weights, read_file, shards, weight_map
from .hub import SIDECARS
from .pipelines import (
    EMBEDDED_GUIDANCE,
    GENERATION,
    INDEX,
    MODELS,
    SCHEDULER_FILE,
    layout_of,
    weights_files,
)
from .schedulers import few_steps, settings_of

__all__ = ["DiffusersSource", "opened", "recognises"]

# Buffers that old checkpoints store and every implementation computes.
COMPUTED = re.compile(r"(^|\.)(position_ids|pos_embed\.pos_embed)$")


def opened(source: str | Path, *, ignore_remote_code: bool = False) -> Source:
    """The source for a directory or hub id. ignore_remote_code: said to all kinds of sources;
    pipelines with code of their own are refused whatever it says."""
    return DiffusersSource(source)


class DiffusersSource:
    """An open pipeline, a `Source`: its `layout`, and `tensors` as "component/name"."""

    kind = "image"
    options: Sequence[str] = ()

    def __init__(self, source: str | Path) -> None:
        self.path = pipeline_folder(source)
        if self.path == Path(source):
            self.name = self.label = Path(os.path.abspath(self.path)).name
        else:
            self.name, self.label = str(source).split("@")[0].rpartition("/")[2], str(source)
        self.faults: list[str] = []
        self.read_files: dict[str, bytes] = {}  # by path inside the pipeline, for hashes
        self.layout = layout_of(self._json(INDEX))
        self.family = self.layout.name
        for name in self.layout.beside:
            notice(f"{self.path.name}: the component {name} is left out, pictures do not need it")
        found = {name: read_file(self.path / name, limits.CONFIG_BYTES) for name in SIDECARS}
        self.sidecars = {name: data for name, data in found.items() if data is not None}
        models = [name for name in self.layout.classes if name in MODELS]
        self.configs = {name: self._json(f"{name}/config.json") for name in models}
        self.checkpoints: dict[str, Checkpoint] = {}
        try:
            for name in models:
                self.checkpoints[name] = self._checkpoint(name)
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, SourceTensor] = {
            f"{name}/{tensor}": held
            for name, checkpoint in self.checkpoints.items()
            for tensor, held in checkpoint.tensors.items()
            if not COMPUTED.search(tensor)
        }
        every = [shard for held in self.checkpoints.values() for shard in held.shards]
        self.nbytes = sum(shard.nbytes for shard in every)

    def parts(self, faults: list[str]) -> tuple[PlannedPart, ...]:
        """Denoiser, text encoders, decoder and encoder, for the size the denoiser was made for."""
        classes, found = self.layout.classes, list[PlannedPart]()
        denoiser = self.layout.pipeline.denoiser
        config = self.configs[denoiser]
        module = pictures.denoiser(self._class(denoiser), config)
        with _told(faults, denoiser) as own:
            sizes = module.read(config, own)
            side = sizes.sample_size
            model = module.build(config, side, side, [])
            found.append(_planned("denoiser", "denoiser", denoiser, model))
        for name in self.layout.pipeline.tokenizers:
            with _told(faults, name) as own:
                model = pictures.text_encoder(classes[name]).build(self._stated(name), own)
                found.append(_planned(name, "text-encoder", name, model))
        with _told(faults, "vae") as own:
            latents, config = self.latents(own), self.configs["vae"]
            if latents.channels != sizes.in_channels:
                own.append(
                    f"latents have {latents.channels} channels, the {denoiser} takes "
                    f"{sizes.in_channels}"
                )
            if side * latents.downscale > limits.PICTURE_SIDE:
                raise refused([f"pictures of {side * latents.downscale} pixels a side, the limit "
                               f"is {limits.PICTURE_SIDE}"])  # fmt: skip
            module_of = pictures.autoencoder(self._class("vae"))
            made = {"decoder": module_of.decoder, "encoder": module_of.encoder}
            for role, build in made.items():
                found.append(_planned(role, role, "vae", build(config, side, side, [])))
        self._check_widths(found, faults)
        return tuple(found)

    def latents(self, faults: list[str]) -> LatentSpec:
        """What lies between denoiser and decoder."""
        module = pictures.autoencoder(self._class("vae"))
        return module.latents(self.configs["vae"], faults)

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        return None

    def image(self, parts: Sequence[PlannedPart], faults: list[str]) -> Image:
        """How pictures are sampled, and the tokenizers."""
        pipeline, files, rows = self.layout.pipeline, dict[str, bytes](), dict[str, int]()
        names, specs = dict[str, str](), {}
        graphs = {part.name: part.graph for part in parts}
        for encoder, tokenizer in pipeline.tokenizers.items():
            found = captions(
                self.path / tokenizer, self.layout.classes[tokenizer],
                self.layout.classes[encoder], pipeline.max_tokens, lower=pipeline.lower,
            )  # fmt: skip
            self.read_files |= {f"{tokenizer}/{n}": data for n, data in found.texts.items()}
            names[encoder], specs[encoder] = f"{encoder}.tokenizer.json", found.spec
            files[names[encoder]] = found.data
            rows[encoder] = min(map(int, graphs[encoder].index_bounds()["tokens"]), default=0)
        latents = self.latents([])
        grid = graphs["denoiser"].inputs[0].shape[0]
        side = round(int(grid) ** 0.5) * latents.downscale
        labels, null = self._labels(graphs["denoiser"].index_bounds().get("label", set()), faults)
        where = f"scheduler/{SCHEDULER_FILE}"
        scheduler = settings_of(
            self._bytes(where), self.path / where, self.layout.classes["scheduler"],
            pipeline.scheduler, faults,
        )  # fmt: skip
        defaults = self._defaults(graphs["denoiser"], scheduler, faults)
        spec = ImageSpec(
            scheduler=scheduler,
            tokenizers=names,
            defaults={**defaults, "width": side, "height": side},
            conditioning=pipeline.conditioning,
            captions=specs,
            labels=labels,
            null_label=null,
            latents=latents,
        )  # fmt: skip
        return Image(spec, files, rows)

    def _defaults(
        self, graph: Graph, scheduler: Mapping[str, Any], faults: list[str]
    ) -> dict[str, float | int]:
        """Steps and guidance: the pipeline's, or those that the model was distilled for, unless
        `generation_config.json` says otherwise, which diffusers does not read and a model's maker
        may write."""
        pipeline = self.layout.pipeline
        found: dict[str, float | int] = {"steps": pipeline.steps, "guidance": pipeline.guidance}
        few = few_steps(scheduler) if pipeline.denoiser == "unet" else None
        if few is not None:
            found = {"steps": few, "guidance": 1.0}
        if any(value.name == GUIDANCE for value in graph.inputs):
            found["guidance"] = EMBEDDED_GUIDANCE
        data = read_file(self.path / GENERATION, limits.CONFIG_BYTES)
        if data is None:
            return found
        self.read_files[GENERATION] = data
        known = {"num_inference_steps": ("steps", int, 1), "guidance_scale": ("guidance", float, 0)}
        for key, value in json_object(data, self.path / GENERATION).items():
            name, kind, least = known.get(key, ("", float, 0))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not name or not number or not least <= value <= 1000 or value != kind(value):
                faults.append(
                    f"{GENERATION}: {key[:64]!r} is {str(value)[:60]!r}, expected "
                    "num_inference_steps from 1 to 1000 and guidance_scale from 0 to 1000"
                )
                continue
            found[name] = kind(value)
        return found

    def _labels(self, rows: set[Any], faults: list[str]) -> tuple[dict[str, int], int | None]:
        """Class by name, each of the names that a text lists, and the null class: the last row."""
        if self.layout.pipeline.conditioning != "labels":
            return {}, None
        null, out = min(rows) - 1, dict[str, int]()
        for number, text in self.layout.labels.items():
            if not 0 <= int(number) < null:
                faults.append(f"{INDEX}: 'id2label' names class {number}, expected 0 to {null - 1}")
            for name in text.split(","):
                out[name.strip()] = int(number)
        if sum(len(name) + 16 for name in out) > limits.MANIFEST_BYTES // 4:
            raise refused([f"{INDEX}: 'id2label' has {len(out)} names, expected fewer or shorter"])
        return dict(sorted(out.items(), key=lambda item: (item[1], item[0]))), null

    def _check_widths(self, parts: Sequence[PlannedPart], faults: list[str]) -> None:
        """A fault where the denoiser reads other caption rows than its encoder gives."""
        graphs = {part.name: part.graph for part in parts}
        wanted = next((v.shape[-1] for v in graphs["denoiser"].inputs if v.name == "caption"), None)
        given = {n: graphs[n].outputs[0].shape[-1] for n in self.layout.pipeline.tokenizers}
        for name, width in given.items():
            if wanted is not None and width != wanted:
                faults.append(
                    f"{name} gives rows of {width}, the {self.layout.pipeline.denoiser} takes "
                    f"{wanted}"
                )

    def _class(self, name: str) -> str:
        """A component's class, as its own config has it, which the pipeline's must be.

        diffusers loads DiT and PixArt from configs of the older class for both."""
        stated, listed = self.configs[name].get("_class_name"), self.layout.classes[name]
        if stated not in (listed, pictures.GENERIC, None) and listed != pictures.GENERIC:
            raise refused([f"{name}/config.json is of {str(stated)[:64]!r}, {INDEX} says "
                           f"{listed!r}"])  # fmt: skip
        return str(stated or listed)

    def _stated(self, name: str) -> dict[str, Any]:
        """The config of a transformers model, with the class that the pipeline loads it as."""
        return {**self.configs[name], "architectures": [self.layout.classes[name]]}

    def _checkpoint(self, name: str) -> Checkpoint:
        folder, faults = self.path / name, list[str]()
        inside = [entry.name for entry in folder.iterdir() if entry.is_file()]
        found = weights_files(name, inside)
        single, index = f"{MODELS[name]}.safetensors", f"{MODELS[name]}.safetensors.index.json"
        if found is None:
            raise no_weights(folder, single, index)
        if found[0]:
            files, placed = [folder / found[0]], dict[str, str]()
        else:
            path = f"{name}/{found[1]}"
            read = json_object(self._bytes(path, limits.TENSOR_HEADER_BYTES), self.path / path)
            placed = weight_map(read, self.path / path)
            files = list(shards(folder, placed, faults))
        checkpoint = Checkpoint(files, faults)
        faults += index_faults(folder, placed, checkpoint)
        self.faults += [f"{name}: {fault}" for fault in faults]
        return checkpoint

    def _bytes(self, name: str, limit: int = limits.CONFIG_BYTES) -> bytes:
        data = read_file(self.path / name, limit)
        if data is None:
            raise ConvertError(
                f"{self.path} has no {name}, expected a whole pipeline of diffusers",
                code="checkpoint-file",
                hint="give the folder that holds model_index.json and all components it names",
            )
        self.read_files[name] = data
        return data

    def _json(self, name: str) -> dict[str, Any]:
        return json_object(self._bytes(name), self.path / name)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that a conversion depends on, by its path in the pipeline."""
        cache = HashCache()
        out = {name: hashlib.sha256(data).hexdigest() for name, data in self.read_files.items()}
        for name, checkpoint in self.checkpoints.items():
            out |= {f"{name}/{s.path.name}": s.sha256(cache) for s in checkpoint.shards}
        cache.save()
        return dict(sorted(out.items()))

    def close(self) -> None:
        for checkpoint in self.checkpoints.values():
            checkpoint.close()

    def __enter__(self) -> DiffusersSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _told:
    """Collects a component's faults, with its name in front; what it raises too."""

    def __init__(self, faults: list[str], name: str) -> None:
        self.faults, self.name, self.own = faults, name, list[str]()

    def __enter__(self) -> list[str]:
        return self.own

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = [f"{self.name}: {fault}" for fault in self.own]
        if isinstance(error, ConvertError) and error.code != "picture-class":
            given = error.values.get("faults") or [error.message]
            own = [f"{self.name}: {fault}" for fault in given]
            raise refused([*self.faults, *dict.fromkeys([*own, *told])]) from None
        self.faults += told


def _planned(name: str, role: str, component: str, model: FamilyModel) -> PlannedPart:
    """A part whose tensors are those of a component."""

    def inside(part: Part) -> Part:
        alias = f"{component}/{part.alias}" if part.alias else ""
        return part._replace(name=f"{component}/{part.name}", alias=alias)

    def moved(recipe: Recipe) -> Recipe:
        return replace(recipe, parts=tuple(map(inside, recipe.parts)))

    return PlannedPart(
        name,
        role,
        model.graph.replace(name=name),
        {weight: moved(recipe) for weight, recipe in model.tensors.items()},
        {f"{component}/{a}": f"{component}/{b}" for a, b in model.tied.items()},
    )
