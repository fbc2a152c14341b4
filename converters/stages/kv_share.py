"""kv-share: some layers of a part read the keys and values of others, before it is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...extras import require
from ...notices import notice
from ..calibrate import Calibration
from ..weights import stored_nbytes, whole
from .base import Context, PartInProgress


class ShareKV:
    """A text part in which up to `layers` layers keep no keys and values, see
    `converters/kv_share.py`; other parts pass. Stages behind it calibrate on the changed part.

    Report: the owner of each layer, pairs that were refused and what the cheapest of them costs,
    the KL to the original in nats a token on text of the search and on held text, and the share of
    the cache that stays.
    """

    name = "kv-share"

    def __init__(self, layers: int, text: Calibration) -> None:
        require("torch", "sharing keys and values", ConvertError)
        self.layers, self.text = layers, text

    def key(self) -> Mapping[str, Any]:
        return {"layers": self.layers, "text": self.text.key()}

    def nbytes(self, part: PartInProgress) -> int:
        return stored_nbytes(part.graph.weights) if part.role == "text" else 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text":
            return part
        from ..kv_share import LIMIT, divergence, layers_of, log_probabilities, search, shared_graph
        from ..torch_graph import TorchGraph

        weights = {name: whole(reader) for name, reader in part.weights.items()}
        found = search(part.graph, weights, context.sequences(self.text), self.layers)
        if len(found.shared) < self.layers:
            notice(
                f"{len(found.shared)} of {self.layers} layers share keys and values: one more "
                f"costs {found.least:.3g} nats a token or more, the limit is {LIMIT}"
            )
        graph, rows = shared_graph(part.graph, found.kv_map)
        cut = {n: w for n, w in graph.weights.items() if w != part.graph.weights[n]}
        cache = context.cache(cut)
        for name in cut:
            cache.write(name, np.ascontiguousarray(weights[name][: rows[name]], np.float32))
            cache.finish(name, {})
        template = context.template() if self.text.chats else None
        held = self.text.held(context.tokenizer, template, part.graph.context)
        kept = {name: weights[name][:stop] for name, stop in rows.items()}
        before, after = (
            log_probabilities(TorchGraph(*model), held)
            for model in ((part.graph, weights), (graph, kept))
        )
        own = len(layers_of(part.graph))
        return part.replace(
            graph=graph,
            weights={n: cache.reader(n) if n in cut else part.weights[n] for n in graph.weights},
        ).reported(
            self.name,
            asked=self.layers,
            kv_map=list(found.kv_map),
            shared={str(layer): owner for layer, owner in found.shared.items()},
            refused=found.refused,
            least_refused=round(found.least, 6),
            kl=round(found.kl, 6),
            held_kl=round(divergence(before, after), 6),
            cache=round(1 - len(found.shared) / own, 4),
        )
