"""Cache policies, one file each: when a step of the sampler is computed and when reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import RequestError
from .base import Context, Kind, NoCache, Plan, Policy, Store
from .easycache import EasyCache
from .firstblock import FirstBlock
from .fixed import FORA, Fixed, TaylorLite
from .magcache import MagCache
from .seacache import SeaCache
from .sencache import SenCache, Sensitivities
from .teacache import TeaCache

POLICIES: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        NoCache, Fixed, SenCache, TeaCache, SeaCache, MagCache, EasyCache, FORA, TaylorLite,
        FirstBlock,
    )
}  # fmt: skip
AUTO = "auto"


def policy_of(
    name: str, *, table: Sensitivities | None = None, gammas: Sequence[float] | None = None,
    **settings: Any,
) -> Policy:  # fmt: skip
    """The policy of that name. table, gammas: of a calibration, for those that want them; `auto` is
    SenCache where there is a table and EasyCache where there is none. settings: the policy's
    fields. Raises RequestError for what it does not know or lacks."""
    if name == AUTO:
        return auto(table, **settings)
    kind = POLICIES.get(name)
    if kind is None:
        raise RequestError(
            f"the cache policy is {name[:80]!r}, expected {AUTO} or one of {', '.join(POLICIES)}",
            code="policy",
            hint="`auto` fits most models",
            field="policy",
        )
    sources: dict[type[Policy], tuple[str, Any]] = {
        SenCache: ("table", table),
        MagCache: ("gammas", gammas),
    }
    needs = sources.get(kind)
    if needs and needs[1] is None:
        raise RequestError(
            f"{name} has no {needs[0]}, expected those of a calibration of this model",
            code="policy-table",
            hint="calibrate the model, or choose easycache, which needs none",
            field="policy",
        )
    given: dict[str, Any] = dict([needs]) if needs else {}
    allowed = set(kind.__dataclass_fields__)
    if unknown := sorted(set(settings) - allowed):
        raise RequestError(
            f"{name} has no setting {unknown[0][:80]!r}, expected {', '.join(sorted(allowed))}",
            code="policy-setting",
            hint="see the policy's documentation",
            field=unknown[0],
        )
    return kind(**given, **settings)


def auto(table: Sensitivities | None, **settings: Any) -> Policy:
    """SenCache with a valid table, else EasyCache. settings: SenCache's, in case of a table."""
    return SenCache(table=table, **settings) if table is not None else EasyCache()


__all__ = [
    "AUTO", "FORA", "POLICIES", "Context", "EasyCache", "FirstBlock", "Fixed", "Kind", "MagCache",
    "NoCache", "Plan", "Policy", "SeaCache", "SenCache", "Sensitivities", "Store", "TaylorLite",
    "TeaCache", "auto", "policy_of",
]  # fmt: skip
