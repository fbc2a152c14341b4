"""What a picture will take, before it is drawn: the pieces that a bundle's parts are run in, how
often, and the bytes of a process that draws.

    with Bundle.open(path) as bundle:
        expected = Expected(bundle)
    seconds = picture_seconds(expected.pieces(Drawing(steps=20, nfe=10)), rates_of(profile))

The network's pieces are run for each branch of guidance: embedding and head in every step, blocks
in the steps that the cache policy computes, which its calibration says, or its interval. Of a
policy that finds out on the way how much it can leave (EasyCache without a calibration) all steps
are counted, so a picture takes at most that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import RequestError
from ..forecast.memory import BASE, TOKENIZER, arena_bytes, held_bytes, tokenizer_bytes
from ..forecast.pictures import Phase, Piece
from ..forecast.work import MAX_ROWS, Work, lowered, works
from ..graph import Graph
from ..session.lowering import Lowering
from . import caching, pieces
from .guidance import Guidance
from .loop import SHORTEST
from .network import cuts_for
from .policies import (
    FORA,
    Context,
    Fixed,
    NoCache,
    Plan,
    Policy,
    SeaCache,
    TaylorLite,
    TeaCache,
)  # fmt: skip
from .request import GUIDANCE, STEPS
from .resize import resized
from .spec import sampler_of_spec, spec_of

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from .tables import SensitivityTable

ROLES = ("text-encoder", "denoiser", "decoder")  # of the parts that a picture is made by
CAPTION_TOKENS = 12  # of a caption, where none is named
PILLOW = 17e6  # bytes of a process that makes Pillow pictures, over one that writes


class Drawing(NamedTuple):
    """What is asked of a picture, as of `ImageModel.__call__`; None: the bundle's own. threads: of
    the session. caption_tokens: of its caption, start and end included."""

    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    cache: str = "auto"
    nfe: float | None = None
    threads: int = 1
    caption_tokens: int = CAPTION_TOKENS


class Denoising(NamedTuple):
    """The sampling loop in numbers. evaluations: steps that compute the blocks, the mean. surely:
    whether that is known, or at most so many. branches: of guidance."""

    steps: int
    evaluations: float
    surely: bool
    branches: int
    policy: Policy


class Expected:
    """A bundle that draws, as far as its pictures' times and memory go; it may be closed then."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError for a bundle that does not draw."""
        self.spec, self.latents = spec_of(bundle)
        manifest = bundle.manifest
        roles = {part.role for part in manifest.parts.values()} & {*ROLES}
        self.graphs = {
            role: bundle.graph(manifest.part_of(role)) for role in ROLES if role in roles
        }
        self.table = caching.table_of(bundle)
        self.nodes = sum(len(graph.nodes) for graph in self.graphs.values())
        names = self.spec.tokenizers.values()
        self.tokenizer = sum(tokenizer_bytes(bundle.path_of(name)) for name in names)
        self._lowered: dict[tuple[Any, ...], Lowering] = {}
        self._held: dict[str, float] = {}
        self._works: dict[int, tuple[Work, ...]] = {}
        self._cuts: dict[tuple[Any, ...], dict[str, Graph]] = {}

    def denoising(self, asked: Drawing) -> Denoising:
        """How often a picture's network is run. Raises RequestError for a policy that cannot be
        asked so."""
        defaults = self.spec.defaults
        steps = asked.steps or int(defaults.get("steps", STEPS))
        policy = caching.chosen(asked.cache, asked.nfe, steps, self.table)
        sampler = sampler_of_spec(self.spec, self.grid(asked), steps)
        idle = policy.idle or steps < SHORTEST or sampler.stochastic
        count, surely = float(steps), True
        if not idle:
            count, surely = _computed(policy, asked.nfe, steps, self.table)
        scale = asked.cfg_scale
        scale = float(defaults.get("guidance", GUIDANCE)) if scale is None else scale
        told = any(value.name == pieces.GUIDANCE for value in self.graphs["denoiser"].inputs)
        alone = not self.spec.conditioning or told
        branches = 1 if alone else len(Guidance(scale).branches)
        return Denoising(steps, count, surely, branches, NoCache() if idle else policy)

    def pieces(self, asked: Drawing) -> list[Piece]:
        """The pieces of one picture."""
        loop, tokens = self.denoising(asked), self._tokens(asked)
        found = []
        if "text-encoder" in self.graphs:
            whole = self._cut("text-encoder", asked, "")["whole"]
            found = [self._piece("encode", whole, 1.0, n, asked) for n in tokens[: loop.branches]]
        cuts = self._cut("denoiser", asked, loop.policy.name)
        for name, times in _network(cuts, loop):
            for n in tokens[: loop.branches]:
                found.append(self._piece("denoise", cuts[name], times, n, asked))
        whole = self._cut("decoder", asked, "")["whole"]
        return [*found, self._piece("decode", whole, 1.0, 1, asked)]

    def memory(self, asked: Drawing, base: float = BASE) -> float:
        """Bytes of a process that draws one picture: packed weights of the parts that are run, and
        the memory of their programs, which stay."""
        loop, tokens = self.denoising(asked), max(self._tokens(asked))
        found = [("text-encoder", "whole")] if "text-encoder" in self.graphs else []
        cuts = self._cut("denoiser", asked, loop.policy.name)
        found += [("denoiser", name) for name, _ in _network(cuts, loop)] + [("decoder", "whole")]
        total = base + PILLOW + TOKENIZER * self.tokenizer
        for role, name in found:
            cut = self._cut(role, asked, loop.policy.name if role == "denoiser" else "")[name]
            total += arena_bytes(self._program(cut, tokens, asked.threads), MAX_ROWS)
        for role in dict.fromkeys(role for role, _ in found):
            if role not in self._held:
                self._held[role] = held_bytes(self.graphs[role], lowered(self.graphs[role]))
            total += self._held[role]
        return total

    def grid(self, asked: Drawing) -> tuple[int, int]:
        """Height and width in latents."""
        down, defaults = self.latents.downscale, self.spec.defaults
        sides = asked.height or defaults["height"], asked.width or defaults["width"]
        if odd := [side for side in sides if side < down or side % down]:
            raise RequestError(
                f"a side is {odd[0]}, expected a multiple of {down}", code="image-size",
                hint=f"{odd[0] // down * down or down} is",
            )  # fmt: skip
        return int(sides[0]) // down, int(sides[1]) // down

    def _tokens(self, asked: Drawing) -> tuple[int, int]:
        """Tokens of the caption, and of the empty one that guidance leads away from."""
        for captions in self.spec.captions.values():
            if captions.pad_id is not None:
                return captions.max_tokens, captions.max_tokens
            ends = 1 if captions.start_id is None else 2
            return min(max(asked.caption_tokens, ends), captions.max_tokens), ends
        return 1, 1

    def _cut(self, role: str, asked: Drawing, policy: str) -> dict[str, Graph]:
        """Graphs of a part by piece, of the wanted size: the whole one of what is not cut."""
        grid = self.grid(asked)
        key = role, grid, policy
        if key not in self._cuts:
            graph = self.graphs[role]
            if role != "text-encoder":
                graph = resized(graph, self.grid(Drawing()), grid)
            cuts = cuts_for(graph, policy) if role == "denoiser" else {}
            self._cuts[key] = cuts or {"whole": graph}
        return self._cuts[key]

    def _program(self, graph: Graph, tokens: int, threads: int) -> Lowering:
        """The program for as many rows of captions as the session makes room for."""
        rows = 1 << (tokens - 1).bit_length()
        key = id(graph), rows, threads  # graphs are kept in `_cuts`
        if key not in self._lowered:
            self._lowered[key] = lowered(graph, threads=threads, rows=rows)
        return self._lowered[key]

    def _piece(
        self, phase: Phase, graph: Graph, times: float, tokens: int, asked: Drawing
    ) -> Piece:
        program = self._program(graph, tokens, asked.threads)
        if id(program) not in self._works:
            self._works[id(program)] = tuple(works(program))
        counts, outside = dict[str, int](), 0.0
        for value in (*graph.inputs, *graph.outputs):
            rows, *width = value.shape
            if isinstance(rows, str):
                counts[rows] = tokens
            outside += float(tokens if isinstance(rows, str) else rows) * float(*width or (1,))
        return Piece(phase, self._works[id(program)], counts, times, outside)


def _network(cuts: Mapping[str, Graph], loop: Denoising) -> Iterator[tuple[str, float]]:
    """Names of the denoiser's pieces for one branch of guidance, and how often each is run."""
    policy, steps, computed = loop.policy, float(loop.steps), loop.evaluations
    if "whole" in cuts:
        yield "whole", computed
        return
    kept = policy.wants[0]  # of a network in pieces all kinds can be kept
    again = steps if policy.idle or kept in ("residual", "blocks") else computed
    yield "embed", again
    yield "keep" if isinstance(policy, FORA) else "body", computed
    if isinstance(policy, FORA):
        yield "reuse", steps - computed
    yield "head", again
    if isinstance(policy, TeaCache | SeaCache) and "feature" in cuts:
        yield "feature", steps / loop.branches  # of the conditional branch alone


def _computed(
    policy: Policy, nfe: float | None, steps: int, table: SensitivityTable | None
) -> tuple[float, bool]:
    """Evaluations of a policy, and whether they are known."""
    if isinstance(policy, Fixed | TaylorLite):
        policy.reset(Plan(np.zeros(steps), 0, steps, 1, 1.0))
        nothing = np.zeros((1, 1, 1, 1), np.float32)
        asked = [policy.decide(Context(k, 0.0, 0.0, nothing)) for k in range(steps)]
        return float(sum(asked)), True
    curve = () if table is None else table.info.thresholds.get(policy.name, ())
    if not curve:
        return float(steps), False
    shares = [share for share, _ in curve]
    wanted = (nfe or caching.SHARE * steps) / steps
    return steps * min(max(wanted, min(shares)), max(shares)), True
