"""LoRA adapters as PEFT writes them: a folder of adapter_config.json and adapter_model.safetensors.

An adapter changes a matrix W [N, K] of the model that it was trained on to

    W + scale * B A          A [r, K], B [N, r], scale = alpha / r, or alpha / sqrt(r) (rslora)

(arXiv 2106.09685, 2312.03732). With DoRA (arXiv 2402.09353) each row of that gets a length m of its
own. Tensors of modules that were trained whole, and biases, take the places of the model's. What an
adapter means beyond that is refused by name. Nothing in it is run, pickles are never opened.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..storage import strict_json
from ..storage.folder import open_regular, sha256_fd
from ..storage.safetensors import TensorFile
from ..storage.typed import Reader

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
F32 = NDArray[np.float32]
FLOATS = ("F32", "F16", "BF16")
PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_(A|B)")
_LENGTHS = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_WHOLE = re.compile(r"(?!.*\.lora_)[\w.]+\.(weight|bias)")
_PLAIN = re.compile(r"\^?(?:\\?\.|[\w-])+")
# What says nothing about the values that are computed, or stands in the tensors anyway.
_SILENT = frozenset({
    "task_type", "inference_mode", "lora_dropout", "revision", "auto_mapping", "peft_version",
    "layers_to_transform", "layers_pattern", "exclude_modules", "target_modules", "modules_to_save",
    "base_model_name_or_path", "eva_config", "loftq_config", "corda_config", "megatron_core",
    "qalora_group_size", "bias", "runtime_config", "lora_ga_config", "monteclora_config",
})  # fmt: skip
# What models of several parts, and base models, call the parts that a checkpoint names otherwise.
_INSIDE = (
    ("", ""), ("model.language_model.", "model."), ("language_model.", ""),
    ("model.text_model.", "model."), ("", "model."),
)  # fmt: skip
# Beginnings of training that leave the model's own weights as they are.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
KINDS = (
    "edgert takes LoRA adapters (rslora and DoRA too) of plain float tensors; merge others with "
    "PEFT's merge_and_unload() and convert the result"
)
DIVERGED = "the adapter is damaged or its training diverged; take another one"


class _Config(msgspec.Struct):
    """What counts of adapter_config.json; other keys are looked through by `_faults`."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool | None = False
    use_dora: bool | None = False
    fan_in_fan_out: bool | None = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: bool | str | None = True


_READER = Reader(_Config)


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix [N, K]: scale * b @ a. a: float32 [r, K]. b: float32 [N, r].
    lengths: of the rows of the sum, float32 [N] (DoRA), None where they stay as they are."""

    a: F32
    b: F32
    scale: float
    lengths: F32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def reach(self) -> float:
        """What no value on the way to the change is larger than."""
        a, b = (np.abs(part).astype(np.float64) for part in (self.a, self.b))
        return float(max(b.max(), a.max(1) @ b.max(0))) * max(1.0, abs(self.scale))


class Adapter:
    """An open adapter. name: its folder's. key: SHA-256 of its content. products: by the module of
    a linear layer. tables: the same of embedding tables, which are [K, N]. replaced: names of
    tensors that take the places of the model's. transposed: the model stores matrices as [K, N].
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises BundleError for what is no adapter, damaged, or means more than it may."""
        self.path = Path(path)
        self.name = Path(os.path.abspath(self.path)).name
        raw = _config_bytes(self.path)
        config = _config(raw, str(self.path / CONFIG))
        self.transposed = bool(config.fan_in_fan_out)
        self.file, digest = _tensors(self.path / WEIGHTS)
        self.key = hashlib.sha256(raw + digest.encode()).hexdigest()
        self.products: dict[str, LowRank] = {}
        self.tables: dict[str, LowRank] = {}
        self.replaced: dict[str, str] = {}
        try:
            self._sort(config)
        except BaseException:
            self.close()
            raise

    def _sort(self, config: _Config) -> None:
        """The tensors by what they are for."""
        faults: list[str] = []
        factors: dict[str, dict[str, str]] = {}
        tables: dict[str, dict[str, str]] = {}
        lengths: dict[str, str] = {}
        for stored in self.file:
            name = stored.removeprefix(PREFIX)
            if self.file.info(stored).dtype not in FLOATS:
                faults.append(f"tensor {stored!r} is {self.file.info(stored).dtype}")
            elif found := _FACTOR.fullmatch(name):
                factors.setdefault(found[1], {})[found[2]] = stored
            elif found := _EMBEDDING.fullmatch(name):
                tables.setdefault(found[1], {})[found[2]] = stored
            elif found := _LENGTHS.fullmatch(name):
                lengths[found[1]] = stored
            elif _WHOLE.fullmatch(name):
                self.replaced[_plain_name(name)] = stored
            else:
                faults.append(f"tensor {stored!r} is none of LoRA's")
        for module in sorted(set(lengths) - set(factors)):
            faults.append(f"module {module!r} has lengths of rows and no factors")
        if not factors and not tables and not self.replaced:
            faults.append("it has no tensors")
        if bool(config.use_dora) != bool(lengths):
            faults.append(f"use_dora is {config.use_dora} and {len(lengths)} modules have lengths")
        _refuse(self.path, faults)
        for module, pair in factors.items():
            self._add(self.products, module, pair, config, faults, lengths.get(module, ""))
        for module, pair in tables.items():
            self._add(self.tables, module, pair, config, faults, "")
        _refuse(self.path, faults)

    def _add(
        self, to: dict[str, LowRank], module: str, pair: Mapping[str, str], config: _Config,
        faults: list[str], lengths: str,
    ) -> None:  # fmt: skip
        """Check and read the factors of a module."""
        if sorted(pair) != ["A", "B"]:
            faults.append(f"module {module!r} has lora_{'+'.join(pair)} alone, expected A and B")
            return
        a, b = (self.file.info(pair[key]).shape for key in "AB")
        rank = _by_pattern(config.rank_pattern, module, config.r)
        alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0] == rank <= limits.ADAPTER_RANK:
            faults.append(f"module {module!r} has A {a} and B {b}, expected [r, K] and [N, r] of "
                          f"rank {rank}, at most {limits.ADAPTER_RANK}")  # fmt: skip
            return
        if not math.isfinite(alpha) or abs(alpha) > 1e6 or 0 in (*a, *b):
            faults.append(f"module {module!r} has alpha {alpha} and A {a}, B {b}")
            return
        size = self.file.info(lengths).shape if lengths else ()
        if lengths and size not in ((b[0],), (1, b[0])):
            faults.append(f"module {module!r} has lengths {size}, expected [{b[0]}]")
            return
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        own = self.values(lengths).reshape(-1) if lengths else None
        found = LowRank(self.values(pair["A"]), self.values(pair["B"]), scale, own)
        if not found.reach < float(np.finfo(np.float32).max):
            names = " and ".join(map(repr, pair.values()))
            said = (
                f"tensors {names} make changes of up to {found.reach:.3g}, more than float32 holds"
            )
            _refuse(self.path, [said], DIVERGED)
        to[module] = found

    def values(self, stored: str, start: int = 0, stop: int | None = None) -> F32:
        """Rows of a tensor as float32. BundleError where they are no finite numbers."""
        rows = self.file[stored][start:stop]
        if self.file.info(stored).dtype == "BF16":
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        found = np.array(rows, np.float32)
        if not np.isfinite(found).all():
            _refuse(self.path, [f"tensor {stored!r} holds NaN or infinities"], DIVERGED)
        return found

    def close(self) -> None:
        """Drop the mapping. Closing twice is allowed."""
        self.file.close()


def names_in_checkpoint(name: str) -> list[str]:
    """What a checkpoint may call a tensor of the model, likeliest first."""
    return [instead + name.removeprefix(p) for p, instead in _INSIDE if name.startswith(p)]


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def _config_bytes(path: Path) -> bytes:
    if not (path / CONFIG).is_file():
        raise BundleError(
            f"{path} has no {CONFIG}, expected an adapter as PEFT writes it",
            code="adapter",
            hint=f"give the folder that holds {CONFIG} and {WEIGHTS}",
            path=path,
        )
    fd = open_regular(path / CONFIG, follow=True)
    with os.fdopen(fd, "rb") as file:
        raw = file.read(limits.CONFIG_BYTES + 1)
    if len(raw) > limits.CONFIG_BYTES:
        _refuse(path, [f"{CONFIG} has more than {limits.CONFIG_BYTES} bytes"])
    return raw


def _config(raw: bytes, where: str) -> _Config:
    """The config; BundleError for one that means what edgert does not compute."""
    found = strict_json.parse(raw, where=where, code="adapter-config")
    if not isinstance(found, dict):
        found = {}
    kind = found.get("peft_type")
    if kind != "LORA":
        _refuse(Path(where), [f"peft_type is {str(kind)[:40]!r}, expected 'LORA'"])
    try:
        config = _READER.convert(found)
    except msgspec.ValidationError as error:
        _refuse(Path(where), [str(error)[:200]])
        raise
    faults = []
    if config.init_lora_weights not in _BEGINNINGS:
        faults.append(
            f"init_lora_weights is {config.init_lora_weights!r}, which changed the model's own "
            "weights too; save the adapter as a plain LoRA"
        )
    patterns = [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    faults += [f"pattern {p[:80]!r} is no plain name" for p in patterns if not _PLAIN.fullmatch(p)]
    own = {*_Config.__struct_fields__, *_SILENT}
    for key, value in found.items():
        if key not in own and value not in (None, False, "", [], {}):
            faults.append(f"{key[:60]!r} is {str(value)[:60]}")
    _refuse(Path(where), faults)
    return config


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The first entry whose name the module ends with, as PEFT looks it up."""
    for key, value in (pattern or {}).items():
        whole, plain = key.startswith("^"), key.removeprefix("^").replace("\\.", ".")
        if module == plain or (not whole and module.endswith(f".{plain}")):
            return value
    return otherwise


def _tensors(path: Path) -> tuple[TensorFile, str]:
    """The mapped weights of an adapter and their SHA-256."""
    if not path.is_file():
        pickled = path.with_name(PICKLE).is_file()
        raise BundleError(
            f"{path.parent} has no {WEIGHTS}" + (f", only {PICKLE}, a pickle" if pickled else ""),
            code="pickle" if pickled else "adapter",
            hint="pickles can run code and are never opened; save it with safe_serialization=True"
            if pickled else "download or copy it again",
            path=path,
        )  # fmt: skip
    fd = open_regular(path, follow=True)
    try:
        file = TensorFile(path, fd=fd)
        return file, sha256_fd(fd)[0]
    finally:
        os.close(fd)


def _refuse(path: Path, faults: list[str], hint: str = KINDS) -> None:
    """BundleError where there are any."""
    if not faults:
        return
    shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
    raise BundleError(
        f"{path} cannot be used: {shown}",
        code="adapter",
        hint=hint,
        path=path,
    )
