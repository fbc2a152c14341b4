"""`edgert.load(path)` opens a bundle as a model.

    import edgert

    with edgert.load("model.edge") as model:
        print(model.generate("Once upon a time", max_tokens=64).text)
        chat = model.conversation(system="Answer briefly.")
        print(chat.say("What is a llama?").text)

Errors are those of `edgert.errors`; sampling parameters are the fields of `SamplingParams`.
"""

from __future__ import annotations

import time
from os import PathLike

from .bundle.reader import Bundle, Verify
from .errors import BundleError
from .session.options import SessionOptions, type_error
from .text.model import TextModel

_MODELS = {"text": TextModel}  # by the kind that a manifest gives


def load(
    path: str | PathLike[str],
    device: str = "cpu",
    threads: int | None = None,
    ctx_size: int | None = None,
    verify: Verify = "cached",
    kv_bits: int = 0,
    kv_memory: int | None = None,
) -> TextModel:
    """Open a bundle and make it ready to generate.

    device: "cpu", "reference" (NumPy), "auto" (CUDA where it can be used, else "cpu"), or an
    execution provider of onnxruntime, such as "cuda", with options after a colon. threads: None
    means one per performance core. ctx_size: tokens a sequence may hold, None means what the model
    was made for. verify: "cached" hashes files once per content change, "full" always, "skip"
    never. kv_bits: precision of keys and values, 32, 16 or 8; 0 lets the model decide. kv_memory:
    bytes that keys and values of all sequences may take; None means half of what is free, at most;
    a context that does not fit is shortened, with a notice. Raises BundleError, DeviceError,
    RequestError, ResourceError.
    """
    options = SessionOptions(device, threads, ctx_size, kv_bits, kv_memory)
    return open_model(path, options, verify=verify)


def open_model(
    path: str | PathLike[str], options: SessionOptions, *, verify: Verify = "cached"
) -> TextModel:
    """The model of a bundle, by the bundle's kind; arguments and errors as for `load`."""
    if verify not in ("cached", "full", "skip"):
        raise type_error("verify", verify, "'cached', 'full' or 'skip'")
    start = time.perf_counter()
    bundle = Bundle.open(path, verify=verify)
    try:
        kind = _MODELS.get(bundle.manifest.kind)
        if kind is None:
            raise BundleError(
                f"{path} is of kind {bundle.manifest.kind!r}, this edgert runs {sorted(_MODELS)}",
                code="bundle-kind",
                hint="update edgert (pip install -U edgert), or see `edgert inspect`",
            )
        model = kind.from_bundle(bundle, options)
    except BaseException:
        bundle.close()
        raise
    model.load_s = time.perf_counter() - start
    return model
