"""Reading diffusers' `scheduler_config.json`: every key is read, or known to say nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import ConvertError

# Keys of schedulers that edgert samples with. A scheduler reads its own and passes over the
# others, which stay behind when a file is made from another scheduler's.
READ = {
    "algorithm_type", "base_image_seq_len", "base_shift", "beta_end", "beta_schedule", "beta_start",
    "clip_sample", "clip_sample_range", "euler_at_final", "final_sigmas_type", "flow_shift",
    "interpolation_type", "invert_sigmas", "lambda_min_clipped", "lower_order_final",
    "max_image_seq_len", "max_shift", "num_train_timesteps", "original_inference_steps",
    "prediction_type", "rescale_betas_zero_snr", "set_alpha_to_one", "shift", "shift_terminal",
    "solver_order", "solver_type", "steps_offset", "stochastic_sampling", "thresholding",
    "time_shift_type", "timestep_scaling", "timestep_spacing", "timestep_type", "trained_betas",
    "use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas", "use_flow_sigmas",
    "use_karras_sigmas", "use_lu_lambdas",
}  # fmt: skip
# Of other schedulers (PNDM, DDPM, UniPC, ...), of training, or about nothing that a sampler does.
SILENT = {
    "_class_name", "_diffusers_version", "_name_or_path", "corrector_order", "disable_corrector",
    "dynamic_thresholding_ratio", "fix_fc_before_pred", "predict_x0", "sample_max_value",
    "sigma_max", "sigma_min", "skip_prk_steps", "solver_p", "use_timestep_alignment", "variance",
    "variance_type", "sigma_schedule", "snr_shift_scale", "train_timesteps", "_use_default_values",
}  # fmt: skip
LONGEST = 100_000  # training timesteps
NO_LIMIT = ("-Infinity", "-inf")  # how files write the absent lambda_min_clipped as text


class Config:
    """One scheduler's settings. Every getter raises ConvertError for a value it cannot take."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        unknown = sorted(str(key) for key in values if key not in READ | SILENT)
        if unknown:
            raise ConvertError(
                f"the scheduler's configuration has an unknown key {unknown[0][:80]!r}, expected "
                "keys of diffusers' DDIM, DPM-Solver++, Euler, LCM or flow-matching Euler",
                code="scheduler-key",
                hint="remove the key if it changes nothing, or report the model",
                key=unknown[0],
            )
        self._values = values

    @property
    def class_name(self) -> str:
        return str(self._values.get("_class_name", ""))

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number in [low, high]."""
        value = self._get(key, default)
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not low <= value <= high:  # nor NaN
            raise self._refused(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.number(key, default, low, high)
        if value != int(value):
            raise self._refused(key, value, "a whole number")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._refused(key, value, "true or false")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._get(key, default)
        if value not in allowed:
            raise self._refused(key, value, " or ".join(map(repr, allowed)))
        return str(value)

    def floor(self, key: str) -> float:
        """A lower limit, -inf where there is none."""
        value = self._get(key, -math.inf)
        if value in NO_LIMIT or value == -math.inf:
            return -math.inf
        return self.number(key, 0.0, -1e6, 1e6)

    def absent(self, *keys: str) -> None:
        """Raise unless each of these is false, null or not there: edgert does not sample so."""
        for key in keys:
            if self._values.get(key):
                raise self._refused(key, self._values[key], "it to be off")

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def given(self, key: str, value: str) -> bool:
        return bool(self._values.get(key) == value)

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def _refused(self, key: str, value: Any, expected: str) -> ConvertError:
        return ConvertError(
            f"the scheduler's {key} is {str(value)[:80]!r}, expected {expected}",
            code="scheduler-value",
            hint="choose another sampler for this model, or report it",
            key=key,
        )
