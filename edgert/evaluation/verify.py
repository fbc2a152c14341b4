"""Checks of a bundle that is not trusted: `edgert verify`.

Where loading stops at the first fault, `verify_bundle` goes on and reports them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import MANIFEST_NAME, Golden
from ..bundle.reader import Bundle
from ..errors import BundleError, DeviceError, EdgertError
from ..roles import token_input
from ..session.base import Feed, Session
from ..session.options import SessionOptions
from ..storage.safetensors import TensorFile

_PIECE = 1 << 20  # elements checked at a time
_FLOATS = ("F64", "F32", "F16", "BF16")


class Check(msgspec.Struct, frozen=True):
    """One question and its answer. `message` and `code` say what is wrong where `ok` is false."""

    subject: str
    ok: bool
    message: str = ""
    code: str = ""
    hint: str = ""


class ValueCounts(msgspec.Struct, frozen=True):
    """What a tensor of floats holds; counts of elements. `zero`: all-zero groups, for scales."""

    tensor: str
    size: int
    nan: int
    infinite: int
    denormal: int
    zero: int

    @property
    def ok(self) -> bool:
        """No NaN, no infinity, and not every value that is not zero too small to be exact."""
        useful = self.size - self.zero
        return not (self.nan or self.infinite or (self.denormal and self.denormal == useful))


class Report(msgspec.Struct, frozen=True):
    """Result of `verify_bundle`. `values` lists tensors with anything to say; `unlisted` files are
    not covered by any hash and are never read by a load."""

    path: str
    ok: bool
    checks: tuple[Check, ...]
    name: str = ""
    fingerprint: str = ""
    values: tuple[ValueCounts, ...] = ()
    unlisted: tuple[str, ...] = ()

    def problems(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.ok]


def verify_bundle(
    path: str | os.PathLike[str],
    options: SessionOptions | None = None,
    *,
    values: bool = False,
) -> Report:
    """Check manifest, sizes, SHA-256 of every file, graphs, and each tensor's type and shape.

    values: also look at every float (NaN, infinity, denormal scales). options: also answer the
    golden prompts greedily in such a session, and compare; of pictures, for which none are
    recorded, compare every part's answer to a small fixed input with the NumPy path's.
    Faults are in the report, not raised, but for a device that cannot be used: DeviceError.
    """
    try:
        bundle = Bundle(path)
    except BundleError as error:
        return Report(str(path), False, (_failed(MANIFEST_NAME, error),))
    with bundle:
        checks, counts = _examine(bundle, values, options)
        return Report(
            str(path),
            all(check.ok for check in checks),
            tuple(checks),
            bundle.manifest.name,
            bundle.fingerprint,
            tuple(counts),
            tuple(sorted(_unlisted(bundle))),
        )


def _examine(
    bundle: Bundle, values: bool, options: SessionOptions | None
) -> tuple[list[Check], list[ValueCounts]]:
    checks = [Check(MANIFEST_NAME, True)]
    faults = bundle.check_files("full")
    for name in bundle.manifest.files:
        checks.append(_failed(name, faults[name]) if name in faults else Check(name, True))
    if faults:
        return checks, []
    structure = _run("graphs and tensors", bundle.check_structure)
    checks.append(structure)
    counts: list[ValueCounts] = []
    if values:
        for file in bundle.tensor_files():
            found, seen = count_values(file)
            checks.append(found)
            counts += seen
    if structure.ok and bundle.manifest.text is not None:
        checks.append(_run("tokenizer", lambda: _read_tokenizer(bundle)))
    if structure.ok and bundle.manifest.image is not None:
        checks += [
            _run(f"tokenizer of {part}", partial(_read_caption_tokenizer, bundle, part))
            for part in bundle.manifest.image.tokenizers
        ]
    if options is not None and structure.ok:
        pictures = bundle.manifest.image is not None
        checks += _parts(bundle, options) if pictures else _golden(bundle, options)
    return checks, counts


def _read_caption_tokenizer(bundle: Bundle, part: str) -> None:
    from ..text.tokenizer import Tokenizer

    image = bundle.manifest.image
    if image is None or part not in image.captions:
        return
    graph, name = bundle.graph(part), image.tokenizers[part]
    rows = [n for n in graph.index_bounds().get(token_input(graph), ()) if isinstance(n, int)]
    where, end = str(bundle.path_of(name)), image.captions[part].end_id
    Tokenizer(bundle.read(name), vocab_size=min(rows, default=0), eos_token_ids=(end,), where=where)


def _parts(bundle: Bundle, options: SessionOptions) -> list[Check]:
    """Every part of a picture pipeline on a small fixed input."""
    from .verify_parts import part_faults

    if bundle.manifest.image is None:
        return []
    hint = f"this device computes differently; run `edgert doctor` ({options.device})"
    faults = part_faults(bundle, bundle.manifest.image, options)
    return [
        Check(f"{part} on {options.device}", not fault, fault, "part" if fault else "",
              hint if fault else "")
        for part, fault in faults.items()
    ]  # fmt: skip


def _read_tokenizer(bundle: Bundle) -> None:
    from ..text.tokenizer import Tokenizer

    Tokenizer.from_bundle(bundle)


def _run(subject: str, action: Callable[[], None]) -> Check:
    try:
        action()
    except EdgertError as error:
        return _failed(subject, error)
    return Check(subject, True)


def _failed(subject: str, error: EdgertError) -> Check:
    return Check(subject, False, error.message, error.code, error.hint)


def _unlisted(bundle: Bundle) -> Iterator[str]:
    for folder, _, files in os.walk(bundle.path):
        for file in files:
            name = Path(folder, file).relative_to(bundle.path).as_posix()
            if name != MANIFEST_NAME and name not in bundle.manifest.files:
                yield name


def count_values(file: TensorFile) -> tuple[Check, list[ValueCounts]]:
    """Check every float of a tensor file, a million at a time."""
    seen = [_count(file, name) for name in file if file.info(name).dtype in _FLOATS]
    bad = [c for c in seen if not c.ok]
    notable = [c for c in seen if c.nan or c.infinite or c.denormal or (c.zero and _is_scales(c))]
    subject = f"values of {file.path.name}"
    if not bad:
        return Check(subject, True), notable
    text = "; ".join(
        f"{c.tensor}: {c.nan} NaN, {c.infinite} infinite, {c.denormal} denormal of {c.size}"
        for c in bad[:16]
    )
    more = f" and {len(bad) - 16} tensors more" if len(bad) > 16 else ""
    message = f"{text}{more}; expected finite values of normal size"
    hint = "the checkpoint was damaged before it was converted; convert a sound one"
    return Check(subject, False, message, "values", hint), notable


def _is_scales(counts: ValueCounts) -> bool:
    return counts.tensor.endswith(".scales")


def _count(file: TensorFile, name: str) -> ValueCounts:
    flat, scales = file[name].reshape(-1), name.endswith(".scales")
    if file.info(name).dtype == "BF16":
        pieces: Iterator[NDArray[Any]] = (
            (flat[i : i + _PIECE].astype(np.uint32) << 16).view(np.float32)
            for i in range(0, flat.size, _PIECE)
        )
    else:
        pieces = (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))
    nan = infinite = denormal = zero = 0
    for piece in pieces:
        nan += int(np.count_nonzero(np.isnan(piece)))
        infinite += int(np.count_nonzero(np.isinf(piece)))
        if scales:
            none = int(np.count_nonzero(piece == 0))
            small = int(np.count_nonzero(np.abs(piece) < np.finfo(piece.dtype).smallest_normal))
            zero, denormal = zero + none, denormal + small - none
    return ValueCounts(name, flat.size, nan, infinite, denormal, zero)


def _golden(bundle: Bundle, options: SessionOptions) -> list[Check]:
    from ..session import open_session

    answers = bundle.manifest.golden
    if options.ctx_size is None and options.device in ("cpu", "reference") and answers:
        # memory for the model's whole context is not needed, and not always to be had
        needed = max(len(golden.prompt_ids) + len(golden.output_ids) for golden in answers)
        options = replace(options, ctx_size=min(max(needed, 1), bundle.graph().context))
    try:
        session = open_session(bundle, options)
    except DeviceError:
        raise
    except EdgertError as error:
        return [_failed(f"session on {options.device}", error)]
    try:
        return [
            _answer(session, golden, f"golden[{index}] on {options.device}")
            for index, golden in enumerate(answers)
        ]
    finally:
        session.close()


def _answer(session: Session, golden: Golden, subject: str) -> Check:
    try:
        found = greedy(session, golden.prompt_ids, len(golden.output_ids))
    except EdgertError as error:
        return _failed(subject, error)
    if found == golden.output_ids:
        return Check(subject, True)
    message = f"answers {found}, expected {golden.output_ids}"
    hint = f"this device computes differently; run `edgert doctor` ({session.device})"
    return Check(subject, False, message, "golden", hint)


def greedy(session: Session, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The next `count` ids by largest logit, the lower id on ties."""
    state = session.new_state(len(prompt))
    ids = np.array(prompt, np.int32)
    out: list[int] = []
    try:
        while len(out) < count:
            for at in range(0, len(ids), session.max_rows):
                piece = ids[at : at + session.max_rows]
                (result,) = session.step([Feed(state, piece)])
                state.commit(len(piece))
            out.append(int(np.argmax(result.logits[-1])))
            ids = np.array(out[-1:], np.int32)
    finally:
        state.close()
    return tuple(out)
