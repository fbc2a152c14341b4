"""A model that draws: text encoder, denoiser and decoder of one bundle, and the sampling loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError
from ..session.base import F32, Session
from ..session.options import SessionOptions
from . import caching, pieces
from .captions import CaptionEncoder, label_of
from .decoding import decoder_rows, shown
from .guidance import COND, UNCOND, Guidance, scale_row
from .joint import Given, JointNetwork, in_calls, spans
from .loop import Sampled, sample
from .network import Arrays, Network, cuts_for, to_grid
from .policies import NoCache
from .request import ImageOptions, Request, resolve
from .resize import resized
from .schedules import KINDS, Array, Run, Sampler, first_step, start
from .spec import sampler_of_spec, spec_of
from .tables import SensitivityTable

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from ..bundle.reader import Bundle


@dataclass(frozen=True)
class Step:
    """One step that was made. index from 0, of `total`. computed: whether the network ran, or its
    last result was used again. preview: draws what the latent shows so far, for the first picture
    (costs a decoding)."""

    index: int
    total: int
    computed: bool
    preview: Callable[[], Image]


# Called after every step; True stops the drawing.
OnStep = Callable[[Step], "bool | None"]


class Pictures(list["Image"]):
    """Pillow pictures, and what they were made by.

    seeds: one a picture. settings: what was asked for. evaluations: computed steps, the mean over
    the batch. timings: seconds of encode_s, denoise_s, decode_s.
    """

    def __init__(
        self, images: list[Image], seeds: tuple[int, ...], settings: Mapping[str, Any],
        evaluations: float, timings: Mapping[str, float],
    ) -> None:  # fmt: skip
        super().__init__(images)
        self.seeds, self.settings = seeds, dict(settings)
        self.evaluations, self.timings = evaluations, dict(timings)

    def settings_of(self, index: int) -> dict[str, Any]:
        """The settings of one picture, with its seed: what its PNG carries."""
        return {**self.settings, "seed": self.seeds[index]}

    def save(self, index: int, path: str | PathLike[str]) -> None:
        """Write one picture as a PNG with its settings. Raises RequestError for another format,
        ResourceError where it cannot be written."""
        from .pictures import save

        save(self[index], Path(path), self.settings_of(index))


class ImageModel:
    """A model that draws pictures. Make one with `edgert.load`; close it or use it in a with block.

        with edgert.load("drawing.edge") as model:
            model("a red apple", seed=1)[0].save("apple.png")

    Threads may share it; their pictures are computed one after the other, step by step.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        denoiser: Session,
        decoder: Session,
        encoder: Session | None = None,
        captions: CaptionEncoder | None = None,
        table: SensitivityTable | None = None,
    ) -> None:
        """The sessions and the bundle are closed with it."""
        self.bundle, self.name = bundle, bundle.manifest.name
        self.fingerprint = bundle.fingerprint
        self.spec, self.latents = spec_of(bundle)
        self.denoiser, self.decoder, self.encoder = denoiser, decoder, encoder
        self.captions, self.table = captions, table
        self.load_s = 0.0
        self._closed = False
        self._cancelled: set[threading.Event] = set()
        self._graphs: dict[tuple[str, tuple[int, int]], Any] = {}
        self._pieces: dict[tuple[int, str], dict[str, Any]] = {}
        defaults, down = self.spec.defaults, self.latents.downscale
        self.made = (int(defaults["height"]) // down, int(defaults["width"]) // down)

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: SessionOptions) -> ImageModel:
        """The model of an open bundle, which is closed with it. Raises BundleError, DeviceError,
        ResourceError; the bundle then stays open."""
        from ..session import open_session

        spec_of(bundle)
        manifest, opened = bundle.manifest, list[Session]()

        def session(part: str) -> Session:
            opened.append(open_session(bundle, options, part=part))
            return opened[-1]

        try:
            roles = {part.role for part in manifest.parts.values()}
            captions = None
            if "text-encoder" in roles:
                part = manifest.part_of("text-encoder")
                captions = CaptionEncoder.of_part(bundle, part, session(part))
            return cls(
                bundle,
                denoiser=session(manifest.part_of("denoiser")),
                decoder=session(manifest.part_of("decoder")),
                encoder=session(manifest.part_of("encoder")) if "encoder" in roles else None,
                captions=captions,
                table=caching.table_of(bundle),
            )
        except BaseException:
            for made in opened:
                made.close()
            raise

    @property
    def session(self) -> Session:
        """The session that does nearly all of the work."""
        return self.denoiser

    def __call__(
        self, prompt: str = "", *, on_step: OnStep | None = None, **options: Unpack[ImageOptions]
    ) -> Pictures:
        """Draw pictures.

        prompt: the caption, or a class of a model that draws classes. on_step: called after each
        step, see `Step`. negative_prompt: what guidance leads away from. steps: of the sampler.
        cfg_scale: strength of guidance, 1 for none. seed: the same seed draws the same pixels on
        the same device; picture i of a batch has seed + i. width, height: pixels. batch: pictures.
        sampler: another one over the model's noise schedule (ddim, dpm++, euler, lcm, flow-euler).
        cache: policy that uses steps again: auto, none, or a name of `policies.POLICIES`. nfe:
        computed steps that the cache shall take about. init, strength: a picture to start from, and
        the share of the steps that change it.

        Raises RequestError for what cannot be drawn (and with the code "cancelled" where it was
        stopped), DeviceError where values are not finite.
        """
        if self._closed:
            raise RequestError("this model is closed", code="closed")
        request = resolve(self.spec, self.latents, prompt, dict(options))
        stop = threading.Event()
        self._cancelled.add(stop)
        try:
            return self._drawn(request, on_step, stop)
        finally:
            self._cancelled.discard(stop)

    def cancel(self) -> None:
        """Stop every drawing within a step; any thread may call."""
        for stop in list(self._cancelled):
            stop.set()

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        self._closed = True
        self.cancel()
        sessions = [self.denoiser, self.decoder, self.encoder]
        if self.captions is not None:
            sessions.append(self.captions.session)
        for session in sessions:
            if session is not None:
                session.close()
        self.bundle.close()

    def __enter__(self) -> ImageModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what a drawing is made of ------------------------------------------------------------

    def sampler(self, request: Request) -> Sampler:
        """The sampler that a request asks for."""
        kind = next((name for name in KINDS.values() if name == request.sampler), None)
        if request.sampler is not None and kind is None:
            raise RequestError(
                f"the sampler is {request.sampler[:80]!r}, expected one of "
                f"{', '.join(KINDS.values())}",
                code="sampler",
                hint="leave it out for the model's own",
                field="sampler",
            )
        return sampler_of_spec(self.spec, request.grid, request.steps, kind)

    def network(
        self, request: Request, check: Callable[[], None] = lambda: None, *, policy: str = ""
    ) -> tuple[Network, Guidance]:
        """The denoiser for a request, and how its branches become one. policy: what it is for."""
        graph = self._graph("denoiser", self.denoiser, request.grid)
        guidance = Guidance(scale=request.cfg_scale, channels=self.latents.channels)
        if not self.spec.conditioning or any(v.name == pieces.GUIDANCE for v in graph.inputs):
            guidance = guidance.alone
        joint = bool(self.denoiser.most(graph, {}))
        network = (JointNetwork if joint else Network)(
            self.denoiser, graph, request.grid, {}, check, policy=policy,
            cut={} if joint and policy == NoCache.name else self._cut(graph, policy),
        )  # fmt: skip
        network.conditions = self._conditions(request, guidance)
        return network, guidance

    def _conditions(self, request: Request, guidance: Guidance) -> dict[str, Arrays]:
        sizes = self._sizes(request)
        if self.spec.conditioning == "labels":
            null = self.spec.null_label
            count = self.classes()
            label = label_of(request.prompt, self.spec.labels, count)
            found = {COND: label, UNCOND: count - 1 if null is None else null}
            return {
                branch: {pieces.LABEL: np.array([found[branch]], np.int32), **sizes}
                for branch in guidance.branches
            }
        if self.captions is None:
            return {branch: sizes for branch in guidance.branches}
        texts = {COND: request.prompt, UNCOND: request.negative_prompt}
        return {
            branch: {pieces.CAPTION: self.captions(texts[branch]), **sizes}
            for branch in guidance.branches
        }

    def classes(self) -> int:
        """How many classes the model knows, the null class included."""
        graph = self.denoiser.graph
        node = next(n for n in graph.nodes if pieces.LABEL in n.inputs)
        return graph.weights[node.weights["weight"]].shape[0]

    def _sizes(self, request: Request) -> dict[str, F32]:
        asked = {
            pieces.HEIGHT: request.height, pieces.WIDTH: request.width,
            pieces.ASPECT: request.height / request.width,
        }  # fmt: skip
        inputs = {value.name: value.shape for value in self.denoiser.graph.inputs}
        found = {n: np.full((1, 1), v, np.float32) for n, v in asked.items() if n in inputs}
        if shape := inputs.get(pieces.GUIDANCE):
            found[pieces.GUIDANCE] = scale_row(request.cfg_scale, int(shape[1]))
        return found

    def _graph(self, part: str, session: Session, grid: tuple[int, int]) -> Any:
        """A part's graph for another size, the same object for the same size."""
        found = self._graphs.get((part, grid))
        if found is None:
            if len(self._graphs) > 8:
                self._graphs.clear()
                self._pieces.clear()
            found = self._graphs[part, grid] = resized(session.graph, self.made, grid)
        return found

    def _cut(self, graph: Any, policy: str) -> dict[str, Any]:
        """Pieces of a graph of `_graph`, the same objects again: sessions know them by that."""
        if (id(graph), policy) not in self._pieces:
            self._pieces[id(graph), policy] = cuts_for(graph, policy)
        return self._pieces[id(graph), policy]

    def _drawn(self, request: Request, on_step: OnStep | None, stop: threading.Event) -> Pictures:
        def check() -> None:
            if stop.is_set():
                raise RequestError("the drawing was stopped", code="cancelled")

        begin = time.perf_counter()
        sampler = self.sampler(request)
        first = 0 if request.init is None else first_step(request.steps, request.strength)
        self.decoder.require(self._graph("decoder", self.decoder, request.grid))
        plan = caching.plan(request.cache, request.nfe, request.steps, self.table)
        network, guidance = self.network(request, check, policy=plan.policy.name)
        encoded = time.perf_counter()
        run = Run(request.seeds)
        shape = (len(request.seeds), self.latents.channels, *request.grid)
        x = start(sampler, shape, run)
        if request.init is not None:
            clean = np.broadcast_to(self.encode(request.init, request), shape)
            noise = (x / np.float32(sampler.init_scale)).astype(np.float32)
            x = np.asarray(sampler.add_noise(clean, noise, first), np.float32)
        done = sample(
            network.denoiser(), sampler, x, guidance=guidance, caching=plan, run=run, first=first,
            on_step=self._teller(on_step, request.grid, stop),
        )  # fmt: skip
        if done.cancelled:
            raise RequestError("the drawing was stopped", code="cancelled")
        sampled = time.perf_counter()
        images = self._decoded(done.x, check)
        ended = time.perf_counter()
        timings = {
            "encode_s": encoded - begin,
            "denoise_s": sampled - encoded,
            "decode_s": ended - sampled,
        }
        return Pictures(
            images, request.seeds, self._settings(request, plan, done), done.evaluations, timings
        )

    def _settings(self, request: Request, plan: Any, done: Sampled) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            **request.settings(),
            "sampler": request.sampler or KINDS[str(self.spec.scheduler["_class_name"])],
            "cache": plan.policy.name if plan is not None else "none",
            "evaluations": round(done.evaluations, 3),
            "model": self.name, "fingerprint": self.fingerprint,
            "device": self.denoiser.device, "edgert": version("edgert"),
        }  # fmt: skip

    def _teller(
        self, on_step: OnStep | None, grid: tuple[int, int], stop: threading.Event
    ) -> Callable[[int, int, Array, bool], bool]:
        def tell(k: int, total: int, x: Array, computed: bool) -> bool:
            wanted = False
            if on_step is not None:
                wanted = bool(on_step(Step(k, total, computed, lambda: self.decode(x[0]))))
            return wanted or stop.is_set()

        return tell

    def _decoded(self, x: Array, check: Callable[[], None]) -> list[Image]:
        """Pictures of latents [n, C, H, W], in as few calls as the decoder takes."""
        grid = x.shape[2], x.shape[3]
        graph = self._graph("decoder", self.decoder, grid)
        images = list[Any]()
        for span in spans(len(x), self.decoder.most(graph, {})):
            check()
            if len(some := x[span]) == 1:
                images.append(self.decode(some[0]))
                continue
            rows = np.stack([decoder_rows(latent, self.latents) for latent in some])
            made = in_calls(self.decoder, graph, Given(len(rows), {graph.inputs[0].name: rows}))
            for _, values in made:
                pixels = values[graph.outputs[0].name]
                images += [shown(one, grid, self.latents) for one in pixels]
        return images

    def decode(self, latent: Array) -> Image:
        """A picture of a latent float32 [C, H, W]. DeviceError where values are not finite."""
        graph = self._graph("decoder", self.decoder, (latent.shape[1], latent.shape[2]))
        rows = {graph.inputs[0].name: decoder_rows(latent, self.latents)}
        pixels = self.decoder.run(rows, graph)[graph.outputs[0].name]
        return shown(pixels, latent.shape[1:], self.latents)

    def encode(self, image: Image, request: Request) -> F32:
        """A latent float32 [C, H, W] of a picture, which is cut to the request's size."""
        from PIL import ImageOps

        from .pictures import to_rows as pixels_of

        if self.encoder is None:
            raise RequestError(
                f"{self.name} has no encoder, which a picture to start from needs",
                code="image-init",
                hint="convert the model again from a checkpoint whose autoencoder has one",
                field="init",
            )
        fitted = ImageOps.fit(image.convert("RGB"), (request.width, request.height))
        low, high = self.latents.low, self.latents.high
        unit = (pixels_of(fitted) + 1) * np.float32((high - low) / 2) + np.float32(low)
        graph = self._graph("encoder", self.encoder, request.grid)
        rows = self.encoder.run({graph.inputs[0].name: unit}, graph)[graph.outputs[0].name]
        rows = rows[:, : self.latents.channels]  # a mean; log variances may follow
        scaled = (rows - np.float32(self.latents.shift)) * np.float32(self.latents.scaling)
        return to_grid(scaled, request.grid)


__all__ = ["ImageModel", "OnStep", "Pictures", "Step", "spec_of"]
