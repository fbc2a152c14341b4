"""Which cache policy a drawing uses: by name, by a wanted number of evaluations, by the bundle's
calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RequestError
from ..notices import notice
from .loop import SHORTEST, Caching
from .policies import AUTO, Fixed, NoCache, Policy, SenCache, policy_of
from .tables import SensitivityTable, TableInfo

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

FILE = "calibration.npz"  # of a bundle
SHARE = 0.5  # of the steps that `auto` computes where a calibration says how


def model_hash(bundle: Bundle) -> str:
    """What a calibration belongs to: the hash of the denoiser's weights."""
    part = bundle.manifest.parts[bundle.manifest.part_of("denoiser")]
    return bundle.manifest.files[part.weights].sha256


def quantisation(bundle: Bundle) -> str:
    """Encodings of the denoiser's weights, as a calibration names them."""
    weights = bundle.graph(bundle.manifest.part_of("denoiser")).weights.values()
    return "+".join(sorted({weight.encoding for weight in weights}))


def table_of(bundle: Bundle) -> SensitivityTable | None:
    """The calibration in a bundle, None without one. Raises BundleError for a damaged one, or one
    of another model."""
    if FILE not in bundle.manifest.files:
        return None
    table = SensitivityTable.from_bytes(bundle.read(FILE))
    info = table.info
    table.check(
        TableInfo(
            model=model_hash(bundle), quantisation=quantisation(bundle),
            prediction=info.prediction, scheduler=info.scheduler, steps=info.steps,
            latent=info.latent, samples=info.samples, shift=info.shift,
        )
    )  # fmt: skip
    return table


def plan(name: str, nfe: float | None, steps: int, table: SensitivityTable | None) -> Caching:
    """How steps are reused.

    name: `auto`, or a policy. nfe: computed steps that are wanted. `auto` is SenCache where there
    is a calibration; else, EasyCache, or evenly spaced steps for a wanted number. Raises
    RequestError for a policy that is unknown, lacks its calibration, or cannot be told a number.
    """
    policy = chosen(name, nfe, steps, table)
    # Each picture of a batch decides for itself, so that it is the one that its seed draws alone.
    # Policies that keep blocks decide by the step's number.
    return Caching(policy=policy, per_sample="blocks" not in policy.wants)


def chosen(name: str, nfe: float | None, steps: int, table: SensitivityTable | None) -> Policy:
    """The policy of `plan`."""
    if name == AUTO:
        if nfe is None and steps < SHORTEST:
            return NoCache()
        if table is None:
            return policy_of("easycache") if nfe is None else Fixed(evaluations=nfe)
        name = SenCache.name
    gammas = None if table is None or table.gammas is None else table.gammas.tolist()
    policy = policy_of(name, table=table, gammas=gammas, **polynomial(name, table))
    if isinstance(policy, NoCache):
        if nfe is not None:
            notice(f"--nfe {nfe:g} is not looked at: the cache policy {name} computes all steps")
        return policy
    if isinstance(policy, Fixed) and nfe is not None:
        return Fixed(evaluations=nfe)
    curve = () if table is None else table.info.thresholds.get(name, ())
    if not curve:
        if nfe is None:
            return policy
        raise RequestError(
            f"the cache policy {name} is to take {nfe:g} evaluations, and nothing says which "
            "threshold does that for this model",
            code="policy-nfe",
            hint=f"`edgert calibrate BUNDLE --policy {name}` measures it for sencache, seacache, "
            "teacache, magcache, easycache and first-block; `--cache fixed` needs no calibration",
            field="nfe",
        )
    return policy.with_threshold(threshold(curve, (nfe or SHARE * steps) / steps))


def polynomial(name: str, table: SensitivityTable | None) -> dict[str, tuple[float, ...]]:
    """TeaCache's coefficients, where the calibration has some."""
    if name != "teacache" or table is None or table.polynomial is None:
        return {}
    return {"polynomial": tuple(map(float, table.polynomial))}


def threshold(curve: tuple[tuple[float, float], ...], share: float) -> float:
    """The threshold for a share of computed steps, between those that were measured.

    curve: (share, threshold) pairs.
    """
    rising = sorted(curve)
    shares = [point[0] for point in rising]
    logs = [math.log(point[1]) for point in rising]
    return math.exp(float(np.interp(share, shares, logs)))
