"""`edgert calibrate`: measure a drawing model for the cache policies, and keep what was found in
its bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..bundle.amend import list_files
from ..bundle.reader import Bundle
from ..errors import RequestError
from ..session.options import SessionOptions
from ..storage.aside import remove_leftovers, replace_file
from ..storage.lock import FileLock
from . import caching
from . import policies as known
from .calibrate import Case, calibrate
from .guidance import Guidance
from .loop import Caching, sample
from .model import ImageModel
from .policies import Policy
from .request import Request, resolve
from .schedules import Run, Sampler, start
from .tables import SensitivityTable, TableInfo
from .tune import largest

if TYPE_CHECKING:
    from PIL.Image import Image

# Diverse captions, for models that take captions and callers that bring none.
PROMPTS = (
    "a red apple", "a cat sitting on a chair", "a mountain lake at sunset", "a portrait of a woman",
    "a city street at night in the rain", "a bowl of fruit, oil painting", "a blue car",
    "a house in a forest in winter",
)  # fmt: skip
SEEDS = 2  # runs of each prompt that are measured
HELD_OUT = 4  # runs, with other seeds, that thresholds are found on
SHARES = (0.8, 0.65, 0.5, 0.42, 0.33)  # of computed steps, whose thresholds are kept
POLICIES = ("sencache",)
TUNED = tuple(
    name for name, kind in known.POLICIES.items() if kind.tuned in ("epsilon", "delta", "tau")
)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What was measured. thresholds: by policy, pairs of a share of computed steps and the
    threshold that takes it. evaluations: calls of the network."""

    table: SensitivityTable
    seconds: float
    evaluations: int
    file: Path

    @property
    def thresholds(self) -> dict[str, tuple[tuple[float, float], ...]]:
        return self.table.info.thresholds


def calibrate_bundle(
    path: str | PathLike[str],
    options: SessionOptions | None = None,
    *,
    prompts: Sequence[str] = (),
    steps: int | None = None,
    pictures: Sequence[Image] = (),
    policies: Sequence[str] = POLICIES,
    progress: Progress = lambda what, done, total: None,
) -> Calibration:
    """Measure the model of a bundle and write `calibration.npz` into it.

    prompts: what it is measured with (captions or classes); by default built-in captions, or
    classes spread over all. steps: of the sampler, by default the bundle's. pictures: noised ones
    instead of the model's own trajectories, one a prompt. policies: whose thresholds are found.
    Raises RequestError for what does not fit the model, ResourceError where the bundle cannot be
    written.
    """
    begin, folder = time.perf_counter(), Path(path)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), str(folder))
    try:
        remove_leftovers(folder)
        model = ImageModel.from_bundle(Bundle.open(folder), options or SessionOptions())
        with model:
            table, calls = _measured(model, prompts, steps, pictures, policies, progress)
            target = model.bundle.path_of(caching.FILE)
            replace_file(target, table.to_bytes())
            list_files(model.bundle, [target])
    finally:
        lock.close()
    return Calibration(table, time.perf_counter() - begin, calls, target)


def _measured(
    model: ImageModel, prompts: Sequence[str], steps: int | None, pictures: Sequence[Image],
    policies: Sequence[str], progress: Progress,
) -> tuple[SensitivityTable, int]:  # fmt: skip
    for name in policies:
        if name not in TUNED:
            raise RequestError(
                f"the cache policy is {name[:80]!r}, expected one with a threshold: "
                f"{', '.join(TUNED)}",
                code="policy",
                hint="the others need no calibration",
                field="policies",
            )
    texts = list(prompts) or default_prompts(model)
    calls = [0]

    def count() -> None:
        calls[0] += 1

    if pictures and len(pictures) != len(texts):
        raise RequestError(
            f"{len(pictures)} pictures and {len(texts)} prompts, expected one picture a prompt",
            code="calibration",
            field="pictures",
        )
    asked = [request_of(model, text, seed, steps) for text in texts for seed in range(SEEDS)]
    sampler = model.sampler(asked[0])
    mode: Any = "forward" if pictures else "trajectory"
    cases = []
    for index, request in enumerate(asked):
        picture = pictures[index // SEEDS] if pictures else None
        cases.append(case_of(model, request, sampler, picture, count))
    guidance = model.network(asked[0])[1]
    progress("sensitivities", 0, 1)
    table = calibrate(cases, sampler, info_of(model, sampler), guidance=guidance, mode=mode)
    held = [request_of(model, text, 1000 + i, steps) for i, text in enumerate(texts[:HELD_OUT])]
    found = {}
    for done, name in enumerate(policies):
        progress(f"thresholds of {name}", done, len(policies))
        policy = caching.chosen(name, None, len(sampler), table)
        trials = [case_of(model, one, sampler, None, count, policy=name) for one in held]
        found[name] = curve(policy, trials, sampler, guidance)
    info = msgspec.structs.replace(table.info, thresholds=found)
    return replace(table, info=info), calls[0]


def curve(
    policy: Policy, cases: Sequence[Case], sampler: Sampler, guidance: Guidance
) -> tuple[tuple[float, float], ...]:
    """Thresholds for SHARES of computed steps, as (share that was measured, threshold)."""
    known: dict[float, float] = {}

    def evaluations(value: float) -> float:
        if value not in known:
            runs = [
                sample(
                    case.model, sampler, case.x, guidance=guidance, run=Run([case.seed]),
                    caching=Caching(policy=policy.with_threshold(value)),
                ).evaluations
                for case in cases
            ]  # fmt: skip
            known[value] = float(np.mean(runs))
        return known[value]

    total = len(sampler)
    points = [largest(evaluations, share * total) for share in SHARES]
    found = {round(taken / total, 6): value for value, taken in points}
    return tuple(sorted(found.items()))


def default_prompts(model: ImageModel) -> list[str]:
    """Captions, or numbers of classes; one empty prompt for a model that takes none."""
    if model.spec.conditioning == "captions":
        return list(PROMPTS)
    if model.spec.conditioning == "labels":
        count = model.classes() - 1
        return [str(i * max(count, 1) // len(PROMPTS)) for i in range(min(len(PROMPTS), count))]
    return [""]


def request_of(model: ImageModel, prompt: str, seed: int, steps: int | None = None) -> Request:
    """A drawing with the model's own settings."""
    return resolve(model.spec, model.latents, prompt, {"seed": seed, "steps": steps})


def case_of(
    model: ImageModel, request: Request, sampler: Sampler, picture: Image | None,
    check: Callable[[], None], *, policy: str = "",
) -> Case:  # fmt: skip
    """One drawing as calibration takes it: from noise, or a picture's latent."""
    network, _ = model.network(request, check, policy=policy)
    shape = (1, model.latents.channels, *request.grid)
    if picture is None:
        x: Any = start(sampler, shape, Run(request.seeds))
    else:
        x = model.encode(picture, request)[None]
    return Case(network.denoiser(), x, request.seeds[0])


def info_of(model: ImageModel, sampler: Sampler) -> TableInfo:
    """What a table of this model is bound to."""
    shift = model.spec.scheduler.get("shift")
    return TableInfo(
        model=caching.model_hash(model.bundle), quantisation=caching.quantisation(model.bundle),
        prediction=sampler.prediction, scheduler=str(model.spec.scheduler["_class_name"]),
        steps=len(sampler), latent=(), samples=0,
        shift=float(shift) if isinstance(shift, int | float) else None,
    )  # fmt: skip
