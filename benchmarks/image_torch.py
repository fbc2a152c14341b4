"""Pictures on torch, for `image_gpu`: a bundle's denoiser and decoder as torch computes them, or
the checkpoint it was made from in diffusers; compiled, in float16.

Both draw a whole batch in one call of the network a branch. Captions are encoded before, by
edgert's session, so that only steps and decoding are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels.ops import CATALOGUE
from edgert.kernels.spatial import position_table
from numpy.typing import NDArray

from edgert.graph import Graph, Node, Value
from edgert.image import pieces
from edgert.image.denoiser import At, Denoiser
from edgert.image.loop import sample
from edgert.image.model import ImageModel
from edgert.image.network import Network, to_grid, to_rows
from edgert.image.pictures import to_image
from edgert.image.request import Request
from edgert.image.schedules import Run, start

Draw = Callable[[], float]  # a batch of pictures; seconds of steps and decoding
Constants = dict[str, tuple[Node, str]]


def hoisted(graph: Graph) -> tuple[Graph, Constants, dict[str, NDArray[np.float32]]]:
    """The graph with what its nodes make of numbers alone as inputs, so that torch does not compute
    it on the host in every step.

    Returns the graph; timestep nodes by the input that takes their place, with the input that they
    read; and grids' positions by input, float32 [N, C].
    """
    shapes, nodes, waves = graph.shapes(), list[Node](), Constants()
    tables: dict[str, NDArray[np.float32]] = {}
    given = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if node.op == "timestep" and node.inputs[0] in given:
            waves[node.output] = node, node.inputs[0]
        elif node.op == "add_grid_positions":
            attrs, width = CATALOGUE[node.op].check_attrs(node.attrs), int(shapes[node.output][1])
            name = f"{node.output}.table"
            table = position_table(attrs["height"], attrs["width"], width, attrs)
            tables[name] = np.ascontiguousarray(table, np.float32)
            nodes.append(Node("add", (node.inputs[0], name), node.output))
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.inputs}
    made = [Value(name, shapes[name]) for name in waves]
    made += [Value(name, table.shape) for name, table in tables.items()]
    kept = [value for value in graph.inputs if value.name in read]
    return graph.replace(inputs=(*kept, *made), nodes=tuple(nodes)), waves, tables


def compiled(
    run: Callable[..., Any], device: str, note: Callable[[str], None]
) -> Callable[..., Any]:
    """`run` compiled when it is first called, or as it is where that fails."""
    import torch

    mode = "reduce-overhead" if device == "cuda" else "default"
    fast = torch.compile(run, mode=mode, dynamic=False)
    chosen: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not chosen:
            try:
                found = fast(*args)
            except Exception as error:  # compilers fail in many ways; the eager row still counts
                note(f"not compiled: {type(error).__name__}: {error}"[:300])
                chosen.append(run)
                return run(*args)
            chosen.append(fast)
            return found
        return chosen[0](*args)

    return call


class Twin:
    """The model's own graphs and weights on torch: a float16 denoiser, a float32 decoder."""

    def __init__(
        self, model: ImageModel, device: str = "cuda", note: Callable[[str], None] = print
    ) -> None:
        import torch

        bundle, manifest = model.bundle, model.bundle.manifest
        self.model, self.device = model, device
        self.half = torch.float16 if device == "cuda" else torch.float32
        part = manifest.part_of("denoiser")
        graph, self.waves, tables = hoisted(bundle.graph(part))
        twin = TorchGraph(graph, bundle.weights(part), device=device, dtype=self.half)
        self.tables = {name: self._tensor(table)[None] for name, table in tables.items()}
        self.inputs = {value.name for value in graph.inputs}
        self.denoise = compiled(lambda given: twin.run(given)[pieces.OUT], device, note)
        part = manifest.part_of("decoder")
        shown = TorchGraph(bundle.graph(part), bundle.weights(part), device=device)
        self.read, self.made = shown.graph.inputs[0].name, shown.graph.outputs[0].name
        self.decode = compiled(lambda rows: shown.run({self.read: rows})[self.made], device, note)

    def _tensor(self, array: NDArray[Any]) -> Any:
        import torch

        kind = torch.int64 if array.dtype.kind == "i" else self.half
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, kind)

    def network(self, network: Network) -> Denoiser:
        """The callables of the loop, a whole batch at once."""
        import torch

        def full(x: Any, at: At) -> Any:
            conditions = network.conditions[at.branch]
            numbers = {pieces.TIMESTEP: np.full((1, 1), at.t, np.float32), **conditions}
            for name, (node, source) in self.waves.items():
                attrs = CATALOGUE[node.op].check_attrs(node.attrs)
                numbers[name] = CATALOGUE[node.op].reference([numbers[source]], {}, attrs)
            given = {pieces.X: self._tensor(np.stack([to_rows(one) for one in x]))}
            for name in self.inputs & set(numbers):
                one = self._tensor(numbers[name])[None]
                given[name] = one.expand(len(x), *one.shape[1:]).contiguous()
            tables = {n: t.expand(len(x), *t.shape[1:]) for n, t in self.tables.items()}
            with torch.inference_mode():
                rows = self.denoise({**given, **tables}).float().cpu().numpy()
            return np.stack([to_grid(one, network.grid) for one in rows])

        return Denoiser(full=full, branches=tuple(network.conditions))

    def shown(self, rows: NDArray[np.float32], request: Request) -> NDArray[np.uint8]:
        """The decoder's rows of one picture as pixels."""
        low, high = self.model.latents.low, self.model.latents.high
        unit = (rows - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
        return np.asarray(to_image(unit, request.height, request.width))

    def draw(self, request: Request) -> tuple[float, NDArray[np.float32]]:
        """A batch: seconds of steps and decoding, and the decoder's rows [n, H * W, 3]."""
        import torch

        model = self.model
        network, guidance = model.network(request)
        sampler, run = model.sampler(request), Run(request.seeds)
        begin = time.perf_counter()
        shape = (len(request.seeds), model.latents.channels, *request.grid)
        x = start(sampler, shape, run)
        x = sample(self.network(network), sampler, x, guidance=guidance, run=run).x
        scaled = x / np.float32(model.latents.scaling) + np.float32(model.latents.shift)
        rows = torch.from_numpy(np.stack([to_rows(one) for one in scaled])).to(self.device)
        with torch.inference_mode():
            pixels = self.decode(rows).cpu().numpy()
        return time.perf_counter() - begin, pixels


def diffusers_draw(checkpoint: Path, prompts: list[str], settings: Mapping[str, Any]) -> Draw:
    """The checkpoint in diffusers on the GPU: compiled transformer, float16, a batch a call."""
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float16)
    pipe = pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = torch.compile(pipe.transformer, mode="reduce-overhead", dynamic=False)
    labels = type(pipe).__name__ == "DiTPipeline"
    asked: Any = pipe.get_label_ids(prompts) if labels else prompts
    options = {
        "num_inference_steps": settings["steps"], "guidance_scale": settings["cfg_scale"],
        "output_type": "np",
    }  # fmt: skip
    if not labels:
        with torch.inference_mode():  # captions are not timed
            found = pipe.encode_prompt(asked, do_classifier_free_guidance=True)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds",
                 "negative_prompt_attention_mask")  # fmt: skip
        options |= dict(zip(names, found, strict=True)) | {"negative_prompt": None}

    def draw() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        if labels:
            pipe(class_labels=asked, **options)
        else:
            pipe(**options)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return draw
