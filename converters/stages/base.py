"""What a stage is: a part of a model in, the same part changed out.

A stage reads weights by rows. One that only changes how weights are read returns readers of its own
and is run anew by every conversion. One whose work is worth keeping writes new weights into
`context.cache(...)` and returns their readers; it is resumable, weight by weight and as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import DraftSpec
from ...bundle.reader import Bundle
from ...bundle.writer import BundleWriter
from ...graph import Graph, Weight
from ..weights import WeightReader
from .cache import StageCache
from .weight_cache import WeightCache

if TYPE_CHECKING:
    from ...text.template import ChatTemplate
    from ...text.tokenizer import Tokenizer
    from ..calibrate import Calibration
    from ..workers import Workers


@dataclass(frozen=True)
class PartInProgress:
    """A part on its way through the stages: graph, weights readable by rows, reports by stage.

    role: as in `sources.base.PlannedPart`. weights: one reader for each weight of the graph. files:
    what else of the bundle comes with it (tokenizer, licence), by name.
    """

    name: str
    role: str
    graph: Graph
    weights: Mapping[str, WeightReader]
    files: Mapping[str, bytes] = field(default_factory=dict)
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def replace(self, **changes: Any) -> PartInProgress:
        """A copy with fields exchanged."""
        return replace(self, **changes)

    def reported(self, stage: str, **report: Any) -> PartInProgress:
        """A copy with the report of a stage."""
        return self.replace(reports={**self.reports, stage: report})


@dataclass(frozen=True)
class NativeDraft:
    """A draft part that a source brings, as it was read: its graph, all weights f32, and a reader
    of each. taps: values of the text part that it reads. ids: tokens that its logits are of,
    rising."""

    graph: Graph
    weights: Mapping[str, WeightReader]
    taps: tuple[str, ...]
    ids: tuple[int, ...]

    @property
    def spec(self) -> DraftSpec:
        """The section of the manifest."""
        return DraftSpec(self.taps)


@dataclass
class Context:
    """What a stage may use while it works on a part.

    source: the part as it was read, before all stages. threads: for work on weights. progress:
    whether a bar may be shown. preview: opens the bundle as it stands once its files are written.
    tokenizer, template: of models with text. workers: opens what jobs over single matrices go
    through. turned: the part as a stage made another model of it, which later ones calibrate on.
    """

    part: str
    stage: str
    source: PartInProgress
    caches: StageCache
    writer: BundleWriter
    preview: Callable[[], Bundle]
    tokenizer: Tokenizer | None
    template: Callable[[], ChatTemplate | None]
    workers: Callable[[], AbstractContextManager[Workers]]
    threads: int
    progress: bool
    opened: WeightCache | None = None
    turned: PartInProgress | None = None

    def cache(self, weights: Mapping[str, Weight]) -> WeightCache:
        """Where this stage's new weights go, as its new graph declares them; call it once.

        Of weights that an earlier run finished, `done` gives the record.
        """
        self.opened = self.caches.open(self.part, self.stage, weights)
        return self.opened

    @property
    def fitted(self) -> PartInProgress:
        """The uncompressed model that compression is fitted to."""
        return self.turned or self.source

    def work(self) -> Path:
        """A folder for what a stage keeps besides weights, while it is under way."""
        return self.caches.work(self.part, self.stage)

    def sequences(self, calibration: Calibration) -> list[NDArray[np.int32]]:
        """The calibration's tokens, in pieces that the model's context holds."""
        template = self.template() if calibration.chats else None
        context = self.source.graph.context
        return calibration.token_sequences(self.tokenizer, template, context)


class Stage(Protocol):
    """One step of a conversion."""

    name: str

    def key(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the part (JSON-ready): the options."""
        ...

    def nbytes(self, part: PartInProgress) -> int:
        """Bytes of disk that this stage will take for a part as the source gives it."""
        ...

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        """The part after this stage. Reports must be JSON-ready where a cache is used; weights
        that are not in the cache are then those of `part`, under the same names."""
        ...
