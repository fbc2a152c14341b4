"""What a picture is asked for by: captions through a text encoder, or labels."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BundleError, RequestError
from ..graph import Graph
from ..notices import notice
from ..roles import token_input
from ..session.base import F32, Session
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..bundle.image_spec import CaptionSpec
    from ..bundle.reader import Bundle

KEPT = 32  # captions whose rows are remembered
SHOWN = 64  # tokens that a notice shows of what was left out


class CaptionEncoder:
    """A tokenizer and a text encoder's session: captions become rows float32 [M, D], a row a
    token. The last `KEPT` captions are remembered."""

    def __init__(self, session: Session, tokenizer: Tokenizer, spec: CaptionSpec) -> None:
        self.session, self.tokenizer, self.spec = session, tokenizer, spec
        self._rows: OrderedDict[str, F32] = OrderedDict()

    @classmethod
    def of_part(cls, bundle: Bundle, part: str, session: Session) -> CaptionEncoder:
        """The encoder `part` of an open bundle; raises BundleError for a tokenizer that does not
        fit it."""
        image = bundle.manifest.image
        if image is None or part not in image.captions:
            raise BundleError(
                f"{bundle.path}: no tokenizer for the part {part!r}, expected one in "
                "image.tokenizers and image.captions",
                code="bundle-part",
                hint="convert the model again",
            )
        name, spec = image.tokenizers[part], image.captions[part]
        width = table_rows(session.graph)
        ids = (spec.end_id, spec.start_id or 0, spec.pad_id or 0)
        if max(ids) >= width:
            raise BundleError(
                f"{bundle.path}: image.captions.{part} has token id {max(ids)}, expected 0 to "
                f"{width - 1}",
                code="token-range",
                hint="the bundle is damaged; convert the model again",
            )
        tokenizer = Tokenizer(
            bundle.read(name), vocab_size=width, eos_token_ids=[spec.end_id],
            where=str(bundle.path_of(name)),
        )  # fmt: skip
        return cls(session, tokenizer, spec)

    def tokens(self, caption: str) -> list[int]:
        """Token ids of a caption with what stands around it; one that is too long is cut in front
        of its end, with a notice."""
        spec = self.spec
        ids = self.tokenizer.encode(caption.strip().lower() if spec.lower else caption)
        front = [] if spec.start_id is None else [spec.start_id]
        room = spec.max_tokens - len(front) - 1
        if len(ids) > room:
            lost = self.tokenizer.decode(ids[room : room + SHOWN])
            lost += " ..." if len(ids) > room + SHOWN else ""
            notice(f"the prompt has {len(ids)} tokens, the model reads {room}; left out: {lost!r}")
        ids = [*front, *ids[:room], spec.end_id]
        if spec.pad_id is not None:
            ids += [spec.pad_id] * (spec.max_tokens - len(ids))
        return ids

    def __call__(self, caption: str) -> F32:
        """Rows of a caption, float32 [M, D]."""
        rows = self._rows.pop(caption, None)
        if rows is None:
            rows = self._encoded(caption)
        self._rows[caption] = rows
        while len(self._rows) > KEPT:
            self._rows.popitem(last=False)
        return rows

    def _encoded(self, caption: str) -> F32:
        ids = np.array(self.tokens(caption), np.int32)
        graph = self.session.graph
        given = {token_input(graph): ids}
        for value in graph.inputs:  # learned positions
            given.setdefault(value.name, np.arange(len(ids), dtype=np.int32))
        rows = self.session.run(given)[graph.outputs[0].name]
        if not np.isfinite(rows).all():
            raise BundleError(
                f"the text encoder makes {np.count_nonzero(~np.isfinite(rows))} values of "
                f"{rows.size} that are not finite, expected numbers",
                code="not-finite",
                hint="the weights are damaged, or need f32; convert the model again",
            )
        return rows


def table_rows(graph: Graph) -> int:
    """How many token ids a text encoder knows."""
    tokens = token_input(graph)
    tables = [n.weights["weight"] for n in graph.nodes if n.op == "embed" and n.inputs == (tokens,)]
    if not tables:
        raise BundleError(
            f"graph {graph.name!r} embeds no tokens, expected a text encoder",
            code="graph",
            hint="convert the model again",
        )
    return graph.weights[tables[0]].shape[0]


def label_of(name: str, labels: Mapping[str, int], classes: int) -> int:
    """The class that a prompt names, or whose number it is. RequestError for others."""
    wanted = name.strip()
    if wanted in labels:
        return labels[wanted]
    folded = {text.lower(): number for text, number in labels.items()}
    synonyms = {folded.get(part.strip()) for part in wanted.lower().split(",")}
    if len(synonyms) == 1 and (found := synonyms.pop()) is not None:
        return found
    if wanted.isdecimal() and int(wanted) < classes:
        return int(wanted)
    near = difflib.get_close_matches(wanted.lower(), folded, 3, 0.4)
    raise RequestError(
        f"the model draws classes and knows none called {wanted[:80]!r}",
        code="label",
        hint=f"one of its {len(labels) or classes} names or a number from 0 to {classes - 1}"
        + (f"; near: {', '.join(near)}" if near else ""),
        field="prompt",
    )
