"""Plans of pictures: size, steps, guidance and cached steps of bundles that draw.

A bundle's score is measured where a table says so (`[[picture]]` rows of a cards file); its rows
are then the candidates. Otherwise steps and evaluations are tried, and a law stands in for the
score, the root mean square distance of pixels (of a range of 1) to the picture of many steps:

    score = 1 - (STEP / steps + REUSE (1 - evaluations / steps)^2)

An Euler step's error falls as one over the steps; what reuse adds is small while a calibrated
policy chooses which. The constants are medians over 64 drawings of the model in this package, and
say nothing of other models but an order: such scores are flagged as a law's, with half of a factor
of e of doubt. Guidance and size are the bundle's own unless the workload or a table asks otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..devices.profile import Profile, Rates
from ..errors import RequestError
from ..forecast.latency import within
from ..forecast.pictures import picture_parts
from ..image.expected import Drawing, Expected
from ..image.loop import SHORTEST
from ..scaling.loss import F64
from ..storage.typed import Reader
from .candidates import MARGIN, Costs
from .cards import Workload, table_faults
from .quality import BY_LAW, Quality

STEPS = (4, 8, 12, 16, 20, 28, 36, 50)
SHARES = (0.4, 0.5, 0.6, 0.75)  # of the steps that are computed
STEP = 0.92
REUSE = {True: 0.026, False: 0.068}  # by a calibrated policy, and by evenly spaced steps
BITS = {"int4": 4, "int8": 8, "f16": 16, "f32": 16}  # of the providers' tables, by encoding


class Sketch(msgspec.Struct, frozen=True):
    """How a picture is drawn. nfe: evaluations that the cache shall take, 0 for no cache."""

    model: str
    width: int
    height: int
    steps: int
    guidance: float
    nfe: float = 0.0
    provider: str = "cpu"

    @property
    def label(self) -> str:
        """As "edgert-draw 128x128 28 steps nfe 14 cfg 3.5 cpu"."""
        parts = [self.model, f"{self.width}x{self.height}", f"{self.steps} steps"]
        parts += [f"nfe {self.nfe:g}"] if self.nfe else []
        return " ".join([*parts, f"cfg {self.guidance:g}", self.provider])


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured score of a bundle, by its name, of `items` pictures. guidance, width, height: 0
    for the bundle's own."""

    model: str
    steps: int
    score: float
    nfe: float = 0.0
    guidance: float = 0.0
    width: int = 0
    height: int = 0
    items: int = 100


ROWS: Reader[tuple[Row, ...]] = Reader(tuple[Row, ...])


class Drawn:
    """A bundle that draws, and what is known of its pictures. stored: bytes of its files."""

    def __init__(self, name: str, expected: Expected, stored: float, rows: Sequence[Row] = ()):
        self.name, self.expected, self.stored = name, expected, stored
        self.rows = tuple(row for row in rows if row.model == name)

    def bits(self) -> int:
        """Of most of the denoiser's weights."""
        sizes: dict[str, int] = {}
        for weight in self.expected.graphs["denoiser"].weights.values():
            if len(weight.shape) == 2:
                kind = weight.encoding.partition("-")[0].removeprefix("u")
                sizes[kind] = sizes.get(kind, 0) + weight.shape[0] * weight.shape[1]
        most = max(sizes, key=lambda kind: sizes[kind], default="f32")
        return BITS.get(most, 16)


def read_rows(path: Path) -> tuple[Row, ...]:
    """`[[picture]]` rows of a TOML file. Raises RequestError."""
    from ..budget.limits import read_toml

    found = read_toml(path, "plan-models")
    try:
        rows = ROWS.convert(found.get("picture", []))
    except msgspec.ValidationError as error:
        faults = [str(error)[:300]]
    else:
        faults = [fault for row in rows for fault in _faults(row)]
        faults += table_faults(found, "picture", [row.model for row in rows])
    if faults:
        raise RequestError(
            f"{path}: {'; '.join(faults[:8])}", code="plan-models",
            hint='a row is, for example, model = "edgert-draw", steps = 28, nfe = 14, score = 0.97',
        )  # fmt: skip
    return rows


def _faults(row: Row) -> list[str]:
    out = []
    if not 0 <= row.score <= 1:
        out.append(f"{row.model}: score is {row.score}, expected 0 to 1")
    if not (1 <= row.steps <= 1000 and 0 <= row.nfe <= row.steps and row.items >= 1):
        out.append(
            f"{row.model}: {row.steps} steps, nfe {row.nfe}, {row.items} items, expected 1 to 1000 "
            "steps, no more evaluations than steps, and an item or more"
        )
    if not (0 <= row.guidance <= 1000 and 0 <= row.width <= 1 << 16 and 0 <= row.height <= 1 << 16):
        out.append(f"{row.model}: guidance {row.guidance}, {row.width} x {row.height}")
    return out


def sketches(
    models: Sequence[Drawn], device: Profile, load: Workload
) -> Iterator[tuple[Drawn, Sketch, Row | None]]:
    """All that can be drawn on a device, with the measured row that each is of."""
    for one, name in itertools.product(models, sorted(device.providers)):
        if one.bits() not in device.providers[name].bits:
            continue
        defaults = one.expected.spec.defaults
        width = load.width or int(defaults["width"])
        height = load.height or int(defaults["height"])
        guidance = float(defaults.get("guidance", 1.0))
        for row in one.rows:
            size = row.width or int(defaults["width"]), row.height or int(defaults["height"])
            if size == (width, height):
                cfg = row.guidance or guidance
                yield one, Sketch(one.name, *size, row.steps, cfg, row.nfe, name), row
        if one.rows:
            continue
        for steps in STEPS:
            for nfe in _cached(one, steps):
                yield one, Sketch(one.name, width, height, steps, guidance, nfe, name), None


def _cached(model: Drawn, steps: int) -> list[float]:
    """Numbers of evaluations that a model's cache can take of some steps, 0 for no cache."""
    if steps < SHORTEST:
        return [0.0]
    wanted = [Drawing(steps, nfe=max(1.0, round(share * steps))) for share in SHARES]
    reached = {round(model.expected.denoising(asked).evaluations) for asked in wanted}
    return [0.0, *sorted(float(n) for n in reached if n < steps)]


def asked_of(one: Sketch, load: Workload, threads: int) -> Drawing:
    """A candidate as it is asked of a model."""
    return Drawing(
        one.steps, one.guidance, one.width, one.height, "auto" if one.nfe else "none",
        one.nfe or None, threads, load.caption_tokens,
    )  # fmt: skip


def costs_of(
    model: Drawn, one: Sketch, device: Profile, load: Workload, rates: Rates
) -> tuple[Costs, float]:
    """What a candidate takes, and how many evaluations: token_s of an evaluation, ttft_s until it
    begins, total_s of a picture. Raises RequestError for a size that the model cannot have."""
    asked = asked_of(one, load, rates.threads)
    count = model.expected.denoising(asked).evaluations
    parts = picture_parts(model.expected.pieces(asked), rates)
    total = load.batch * sum(parts.values())
    memory = model.expected.memory(asked)
    shares = {
        "memory": MARGIN * memory / device.memory.usable.value,
        "storage": model.stored / device.storage.size.value,
    }
    if load.total_budget_s is not None:
        limit = load.total_budget_s
        shares["seconds a picture"] = within(total, limit, device.spread, load.percentile)
    binding = max(shares, key=lambda name: shares[name])
    each = parts["denoise"] / max(count, 1.0)
    costs = Costs(memory, model.stored, each, parts["encode"], total, shares[binding], binding)
    return costs, count


def scores_of(
    one: Sketch, evaluations: float, row: Row | None, normal: F64, *, calibrated: bool
) -> tuple[F64, Quality]:
    """Scores of a candidate in every draw [DRAWS], and their summary. normal: float64 [2, DRAWS],
    the same for all candidates. calibrated: whether reuse is by a calibrated policy."""
    if row is not None:
        deviation = (row.score * (1 - row.score) / row.items) ** 0.5
        drawn, source = row.score + deviation * normal[1], "measured"
        error = 1 - row.score
    else:
        reused = 1 - evaluations / one.steps
        error = STEP / one.steps + REUSE[calibrated] * reused**2
        drawn, source = 1 - error * np.exp(BY_LAW * normal[0]), "law"
    score: F64 = np.clip(drawn, 0.0, 1.0)
    low, high = (float(np.quantile(score, q)) for q in (0.05, 0.95))
    mean = float(score.mean()) if row is None else row.score
    return score, Quality(mean, low, high, error, error, source)


def provenance(models: Sequence[Drawn]) -> dict[str, Any]:
    """Where scores and numbers of evaluations come from, for a plan."""
    measured = sorted(one.name for one in models if one.rows)
    calibrated = sorted(one.name for one in models if one.expected.table is not None)
    law = {
        "step": STEP, "reuse calibrated": REUSE[True], "reuse evenly": REUSE[False],
        "of": "edgert-draw, median root mean square of pixels",
    }  # fmt: skip
    return {"measured": measured, "calibrated": calibrated, "law": law}
