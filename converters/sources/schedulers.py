"""scheduler_config.json of a pipeline, as settings of a sampler that edgert has.

Samplers that edgert lacks follow the same noise as others; what stands in for one is what comes
closest to it, over the timesteps that its file asks for, and a notice says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import EdgertError
from ...image.schedules import KINDS, sampler_of
from ...notices import notice
from .files import json_object

Settings = dict[str, str | float | int | bool]

# How Python writes the absent limit into a scheduler's JSON.
NO_LIMIT = re.compile(rb'("lambda_min_clipped"\s*:\s*)-Infinity')
SETTING = 200  # characters of a scheduler's text
NOISE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
    "use_flow_sigmas", "flow_shift", "use_karras_sigmas",
)  # fmt: skip


class Substitute(NamedTuple):
    """kind: the class that stands in. settings: those that its file cannot say, and defaults of the
    replaced class that are others than the substitute's."""

    kind: str
    settings: Settings
    more: tuple[str, ...] = ()  # keys that are read besides `NOISE`


_DDIM = Substitute(
    "DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}, ("set_alpha_to_one",)
)
_DPM = Substitute("DPMSolverMultistepScheduler", {})
# Of those with a free choice PNDM's end is DDIM's: the same timesteps, and noise that is left.
SUBSTITUTES: Mapping[str, Substitute] = {
    "PNDMScheduler": _DDIM,
    "DEISMultistepScheduler": _DPM,
    "LMSDiscreteScheduler": _DPM,
    "UniPCMultistepScheduler": _DPM,
    "EulerAncestralDiscreteScheduler": Substitute("EulerDiscreteScheduler", {}),
}


def settings_of(
    data: bytes, path: Path, listed: str, fixed: Mapping[str, Any], faults: list[str]
) -> Settings:
    """The settings that are not null, of a sampler that edgert has.

    path: of the file, for messages. listed: the class that the pipeline's index says. fixed: what
    the pipeline sets whatever the file says.
    """
    where = f"{path.parent.name}/{path.name}"
    kept = Settings()
    for key, value in json_object(NO_LIMIT.sub(rb"\1null", data), path).items():
        if value is None or key in ("_name_or_path", "_use_default_values"):
            continue
        if not isinstance(value, (str, int, float, bool)) or len(str(value)) > SETTING:
            faults.append(
                f"{where}: {key[:64]!r} is {str(value)[:60]!r}, expected a number, a short "
                "text, true or false"
            )
            continue
        kept[key] = value
    stated = kept.get("_class_name")
    if stated != listed:
        faults.append(f"{where} is of {str(stated)[:64]!r}, the pipeline says {listed!r}")
    elif not faults:
        name = path.parent.parent.name
        kept = _substituted(kept, name)
        for key, value in fixed.items():
            if kept.get(key, value) != value:
                notice(f"{name}: {where} says {key} {kept[key]}, taken is {value}, as its pipeline "
                       "does")  # fmt: skip
        kept |= fixed
        faults += [f"{where}: {fault}" for fault in _sampler_faults(kept)]
    return kept


def _substituted(settings: Settings, name: str) -> Settings:
    """The same, or another sampler over the same noise where edgert lacks the one that is named.
    name: of the pipeline, for the notice."""
    found = SUBSTITUTES.get(str(settings["_class_name"]))
    if found is None:
        return settings
    kept = {key: settings[key] for key in (*NOISE, *found.more) if key in settings}
    new = {"_class_name": found.kind, **found.settings, **kept}
    notice(
        f"{name} samples by {settings['_class_name']}, which edgert lacks: its pictures are drawn "
        f"by {KINDS[found.kind]} over the same noise, and are not quite those of diffusers"
    )
    return new


def _sampler_faults(settings: Settings) -> list[str]:
    """Why no sampler follows the settings."""
    mu = 0.5 if settings.get("use_dynamic_shifting") else None
    try:
        sampler_of(settings, 1, mu=mu)
    except EdgertError as error:
        return [error.message]
    return []


def few_steps(settings: Mapping[str, Any]) -> int | None:
    """The steps that a model was distilled for, as its schedule tells: consistency models have a
    sampler of their own, adversarially distilled ones begin at the noisiest timestep and predict
    noise there. None for models that were not."""
    kind = settings.get("_class_name")
    if kind == "LCMScheduler":
        return 4
    trailing = settings.get("timestep_spacing") == "trailing"
    noise = settings.get("prediction_type", "epsilon") == "epsilon"
    if kind == "EulerDiscreteScheduler" and trailing and noise:
        return 1
    return None
