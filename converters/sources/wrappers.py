"""Tensor names under what a training program wrapped around the model.

torch's DistributedDataParallel puts `module.` in front of every name, torch.compile `_orig_mod.`,
PEFT `base_model.model.`; FSDP and activation checkpointing put theirs in the middle. A checkpoint
that was saved with them holds its model all the same. Its names are taken without them where every
one fits then; anything else is refused in one line that names the prefix, and never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from ...errors import ConvertError
from ...notices import notice
from ..families import FamilyModel
from ..match import COMPUTED
from .base import SourceTensor

INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SURE = ("module.", "base_model.model.")  # no model calls a part of itself so
OUTER = (*SURE, "model.", "transformer.", "language_model.", "text_model.", "llm.")
BARE = re.compile(r"(embed_tokens|layers\.\d+|norm|embedding_norm|final_layernorm)\.")
Tensors = dict[str, SourceTensor]


def without_sure_wrappers(tensors: Mapping[str, SourceTensor]) -> Tensors:
    """The tensors without wrappers whose names can mean nothing else; as they are where two names
    would become one."""
    out = _renamed(tensors, lambda name: INNER.sub("", name))
    while out and (prefix := _common(out, SURE)):
        out = _stripped(out, prefix)
    return out or dict(tensors)


def unwrapped(where: str, model: FamilyModel, tensors: Mapping[str, SourceTensor]) -> Tensors:
    """The tensors by the names that `model` has for them. ConvertError where a prefix is in the
    way that cannot simply be left out; other misfits are left to the comparison of all names."""
    out = dict(tensors)
    if not _missing(model, out):
        return out
    for candidate in _candidates(out):
        if not _missing(model, candidate) and not _unexpected(model, candidate):
            longest = max(tensors, key=len)
            notice(f"{where}: tensor names such as {longest!r} are taken without their wrapper")
            return candidate
    _refuse_prefix(where, model, out)
    return out


def _candidates(tensors: Tensors) -> Iterator[Tensors]:
    """The tensors under shorter and shorter names, each also as those of a base model."""
    out = _renamed(tensors, lambda name: INNER.sub("", name))
    while out:
        yield out
        bare = {f"model.{n}" if BARE.match(n) else n: t for n, t in out.items()}
        if len(bare) == len(out):
            yield bare
        prefix = _common(out, OUTER)
        if not prefix:
            return
        out = _stripped(out, prefix)


def _renamed(tensors: Mapping[str, SourceTensor], rename: Callable[[str], str]) -> Tensors:
    """The tensors by new names; none where two would have the same."""
    out = {rename(name): tensor for name, tensor in tensors.items()}
    return out if len(out) == len(tensors) else {}


def _stripped(tensors: Tensors, prefix: str) -> Tensors:
    return _renamed(tensors, lambda name: name.removeprefix(prefix))


def _common(names: Iterable[str], prefixes: Iterable[str]) -> str:
    """The prefix that all names have, but perhaps those of the head."""
    inside = [name for name in names if not name.startswith("lm_head.")]
    return next((p for p in prefixes if inside and all(n.startswith(p) for n in inside)), "")


def _missing(model: FamilyModel, names: Mapping[str, SourceTensor]) -> list[str]:
    """Names that the model needs; biases of output projections may be absent."""
    parts = [part for recipe in model.tensors.values() for part in recipe.parts]
    return [
        part.name
        for part in parts
        if part.name not in names and part.alias not in names
        and not part.name.endswith("o_proj.bias")
    ]  # fmt: skip


def _unexpected(model: FamilyModel, names: Mapping[str, SourceTensor]) -> list[str]:
    parts = [part for recipe in model.tensors.values() for part in recipe.parts]
    known = {part.name for part in parts} | {part.alias for part in parts} | set(model.tied)
    return [name for name in names if name not in known and not COMPUTED.search(name)]


def _refuse_prefix(where: str, model: FamilyModel, tensors: Tensors) -> None:
    """ConvertError where most of what the model needs is there under other prefixes."""
    missing = _missing(model, tensors)
    short = {name.removeprefix("model.") for name in missing}
    found: Counter[str] = Counter()
    for name in tensors:
        pieces = INNER.sub("", name).split(".")
        starts = [i for i in range(1, len(pieces)) if ".".join(pieces[i:]) in short]
        if starts:
            before = ".".join(pieces[: starts[0]]) + "."
            found[before if before in OUTER else before.removesuffix("model.")] += 1
    count = sum(found.values())
    if count < len(missing) / 2 or not count:
        return
    shown = " or ".join(repr(prefix) for prefix in sorted(found, key=lambda p: (-found[p], p))[:3])
    raise ConvertError(
        f"{where} has {count} of its {len(tensors)} tensors under the prefix {shown}, expected "
        f"names such as {missing[0]!r}: edgert does not guess what such a prefix means",
        code="tensor-names",
        hint="save the model itself and not what is wrapped around it (model.module, "
        "model._orig_mod, PEFT's merge_and_unload()), with save_pretrained",
    )
