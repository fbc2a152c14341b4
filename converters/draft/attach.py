"""A trained head as the part `draft` of a copy of its bundle, with what its guesses are worth."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.draft import ROLE
from ...bundle.manifest import MANIFEST_NAME, DraftSpec, Manifest, Part
from ...bundle.reader import Bundle
from ...bundle.writer import BundleWriter
from ...errors import ConvertError
from ...graph import Graph, Weight
from ...kernels.encodings import ENCODINGS, asked, encoding_of, quantize, tensors_of
from ...kernels.quant import Matrix
from ...session.options import SessionOptions
from ...storage.safetensors_writer import TensorWriter
from ...text.model import TextModel
from ...text.speculative.options import DraftOptions
from ..stages.emit import part_files
from ..weights import specs_of, stored_nbytes
from .options import TrainedHead
from .shape import head_graph, shape_for
from .target import Ids

PART, IDS = "draft", "draft.ids.bin"
GAMMA = 4  # guesses a step while measuring
MEASURED = 96  # tokens of an answer while measuring
MODES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "seed": 1},
}  # fmt: skip


def attach(
    bundle: Bundle, out: Path, head: TrainedHead, held: Sequence[Ids], *,
    quant: str, threads: int | None = None,
) -> tuple[int, dict[str, float]]:  # fmt: skip
    """Write a copy of an open bundle with a head, whose matrices are stored as `quant`.

    held: prompts to measure on. Gives the head's bytes and, for greedy and sampled answers (the
    model's whole law), `tau_<mode>`, tokens a step of GAMMA guesses, and `accepted_<mode>`, the
    share of checked guesses that stood. Raises ConvertError for a head of another model.
    """
    graph, weights = stored(bundle, head, quant)
    with BundleWriter(out) as writer:
        _copy(bundle, writer)
        files = part_files(PART)
        writer.file(files[0]).write_bytes(graph.to_json())
        with TensorWriter(writer.file(files[1]), specs_of(graph.weights)) as file:
            for name, weight in weights.items():
                tensors = tensors_of(weight)
                for tensor in encoding_of(weight).tensors:
                    file.write(name + tensor.suffix, tensors[tensor.key])
        writer.file(IDS).write_bytes(head.ids.astype("<i4").tobytes())
        spec = DraftSpec(head.shape.taps, IDS)
        manifest = _manifest(bundle.manifest, spec, files, head)
        measured = _measured(writer.preview(manifest), held, threads) if held else {}
        spec = DraftSpec(head.shape.taps, IDS, measured)
        writer.finish(manifest.replace(draft=spec))
    return stored_nbytes(graph.weights), measured


def stored(bundle: Bundle, head: TrainedHead, quant: str) -> tuple[Graph, dict[str, Matrix]]:
    """The head's graph and weights in their encodings. Raises ConvertError where it is not a head
    of the bundle's model."""
    wanted = shape_for(bundle.graph(), head.shape.vocabulary)
    if head.shape != wanted or head.ids[-1] >= bundle.manifest.text_spec.vocab_size:
        raise ConvertError(
            f"the head is one of {head.shape}, {bundle.manifest.name} takes {wanted}",
            code="draft-saved",
            hint="a head belongs to the model that it was trained for",
        )
    graph, quant = head_graph(head.shape), asked()[quant]
    kinds = {
        name: quant if len(w.shape) in ENCODINGS[quant].ranks and len(w.shape) > 1 else "f32"
        for name, w in graph.weights.items()
    }
    graph = graph.replace(
        weights={name: Weight(w.shape, kinds[name]) for name, w in graph.weights.items()}
    )
    held = {n: np.asarray(head.weights[n], np.float32) for n in graph.weights}
    return graph, {n: quantize(w, kinds[n]) for n, w in held.items()}


def _copy(bundle: Bundle, writer: BundleWriter) -> None:
    """All files of a bundle but those of a head that it has already."""
    manifest = bundle.manifest
    gone = {MANIFEST_NAME}
    for part in manifest.parts.values():
        gone |= {part.graph, part.weights} if part.role == ROLE else set()
    gone |= {manifest.draft.ids} if manifest.draft is not None else set()
    for name in manifest.files:
        if name not in gone:
            shutil.copyfile(bundle.path_of(name), writer.file(name))


def _manifest(
    before: Manifest, spec: DraftSpec, files: tuple[str, str], head: TrainedHead
) -> Manifest:
    parts = {name: part for name, part in before.parts.items() if part.role != ROLE}
    parts[PART] = Part(files[0], files[1], ROLE)
    report = {**before.report, "draft": dict(head.told)}
    return before.replace(parts=parts, draft=spec, files={}, report=report)


def _measured(bundle: Bundle, held: Sequence[Ids], threads: int | None) -> dict[str, float]:
    """What the head's guesses are worth, by the bundle as it stands, which is closed."""
    options = DraftOptions("head", max_tokens=GAMMA, adapt=False)
    found: dict[str, float] = {"guesses": GAMMA}
    try:
        model = TextModel.from_bundle(bundle, SessionOptions(threads=threads))
    except BaseException:
        bundle.close()
        raise
    with model:
        for mode, params in MODES.items():
            steps = tokens = right = reached = 0
            for ids in held:
                room = min(MEASURED, model.context - len(ids))
                if room < 1:
                    continue
                plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
                stats = model.generate(
                    ids.tolist(), max_tokens=room, draft=options, **{**plain, **params}
                ).drafting
                if stats is not None:
                    steps, tokens = steps + stats.steps, tokens + stats.tokens
                    right, reached = right + sum(stats.right), reached + sum(stats.reached)
            found[f"tau_{mode}"] = round(tokens / max(1, steps), 4)
            found[f"accepted_{mode}"] = round(right / max(1, reached), 4)
    return found
