"""`edgert.load(path)` opens a bundle as a model.

    import edgert

    with edgert.load("model.edge") as model:
        print(model.generate("Once upon a time", max_tokens=64).text)
        chat = model.conversation(system="Answer briefly.")
        print(chat.say("What is a llama?").text)

    with edgert.load("drawing.edge") as model:
        model("a red apple left of a cat")[0].save("apple.png")

Errors are those of `edgert.errors`; sampling parameters are the fields of `SamplingParams`, those
of pictures the fields of `ImageOptions`.
"""

from __future__ import annotations

import time
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

from .bundle.converted import as_bundle
from .bundle.reader import Bundle, Verify
from .errors import BundleError, RequestError
from .session.options import SessionOptions, type_error

if TYPE_CHECKING:
    from .image.model import ImageModel
    from .text.model import TextModel
    from .text.speculative.options import Draft

Kind = Literal["text", "image"]
# By the kind that a manifest gives: the module and class of its model.
_MODELS = {"text": ("text.model", "TextModel"), "image": ("image.model", "ImageModel")}


@overload
def load(
    path: str | PathLike[str], device: str = ..., threads: int | None = ...,
    ctx_size: int | None = ..., verify: Verify = ..., kv_bits: int = ...,
    kv_memory: int | None = ..., *, kind: Literal["text"] | None = ...,
    draft: Draft | None = ..., prompt_cache: str | PathLike[str] | None = ...,
    prompt_cache_size: int | None = ...,
    snapshot_bits: int = ...,
) -> TextModel: ...  # fmt: skip
@overload
def load(
    path: str | PathLike[str], device: str = ..., threads: int | None = ...,
    ctx_size: int | None = ..., verify: Verify = ..., kv_bits: int = ...,
    kv_memory: int | None = ..., *, kind: Literal["image"],
) -> ImageModel: ...  # fmt: skip
def load(
    path: str | PathLike[str],
    device: str = "cpu",
    threads: int | None = None,
    ctx_size: int | None = None,
    verify: Verify = "cached",
    kv_bits: int = 0,
    kv_memory: int | None = None,
    *,
    kind: Kind | None = None,
    draft: Draft | None = None,
    prompt_cache: str | PathLike[str] | None = None,
    prompt_cache_size: int | None = None,
    snapshot_bits: int = 32,
) -> Any:
    """Open a bundle and make it ready: a `TextModel`, or an `ImageModel` where it draws.

    path: of a bundle, or of a GGUF file, which is converted into the cache the first time.

    device: "cpu", "reference" (NumPy), "auto" (CUDA where it can be used, else "cpu"), or an
    execution provider of onnxruntime, such as "cuda", with options after a colon. threads: None
    means one per performance core. ctx_size: tokens a sequence may hold, None means what the model
    was made for. verify: "cached" hashes files once per content change, "full" always, "skip"
    never. kv_bits: precision of keys and values, 32, 16, 8 or 4; 0: the model decides. kv_memory:
    bytes that keys and values of all sequences may take; None means half of what is free, at most;
    a context that does not fit is shortened, with a notice. kind: "text" or "image" to have nothing
    else opened; type checkers take the result for a `TextModel` unless it is "image". draft: what
    answers are drafted with, which makes them quicker and does not change them: "ngram", a smaller
    model of the same tokenizer (path or `TextModel`), several in a list, "none", or `DraftOptions`;
    None means "auto", see there. prompt_cache: a folder in which the work on beginnings of texts is
    kept for later processes (cpu); prompt_cache_size: bytes that its files may take, None means
    4 GiB. snapshot_bits: 32, or 16 to keep known beginnings of recurrent models in half the memory,
    with answers that differ by rounding (cpu). Raises BundleError, DeviceError, RequestError,
    ResourceError.
    """
    kept: Any = {"prompt_cache": prompt_cache, "prompt_cache_size": prompt_cache_size}
    kept["snapshot_bits"] = snapshot_bits
    options = SessionOptions(device, threads, ctx_size, kv_bits, kv_memory, **kept)
    return open_model(path, options, verify=verify, kind=kind, draft=draft)


def open_model(
    path: str | PathLike[str],
    options: SessionOptions,
    *,
    verify: Verify = "cached",
    kind: Kind | None = None,
    draft: Draft | None = None,
) -> Any:
    """The model of a bundle, by the bundle's kind; arguments and errors as for `load`."""
    if verify not in ("cached", "full", "skip"):
        raise type_error("verify", verify, "'cached', 'full' or 'skip'")
    if kind not in (None, *_MODELS):
        raise type_error("kind", kind, "'text', 'image' or None")
    start = time.perf_counter()
    bundle = Bundle.open(as_bundle(path), verify=verify)
    try:
        found = bundle.manifest.kind
        if found not in _MODELS or kind not in (None, found):
            wanted = sorted(_MODELS) if kind is None else repr(kind)
            raise BundleError(
                f"{path} is of kind {found!r}, expected {wanted}",
                code="bundle-kind",
                hint=_HINTS.get(found, "update edgert (pip install -U edgert)"),
            )
        if found != "text" and options.prompt_cache is not None:
            raise RequestError(
                f"a prompt cache for {path}, which is of kind {found!r}, expected 'text'",
                code="prompt-cache-kind",
                hint="leave prompt_cache out",
                field="prompt_cache",
            )
        module, name = _MODELS[found]
        opened = getattr(import_module(f".{module}", __package__), name)
        more = _draft_of(draft) if found == "text" else {}
        model = opened.from_bundle(bundle, options, **more)
    except BaseException:
        bundle.close()
        raise
    model.load_s = time.perf_counter() - start
    return model


def _draft_of(draft: Draft | None) -> dict[str, Any]:
    return {"draft": "auto" if draft is None else draft}


_HINTS = {
    "text": "this model writes: `edgert chat`, `edgert generate`",
    "image": "this model draws: `edgert image`",
}
