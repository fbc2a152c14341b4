"""What a conversion is asked for, in the words of its options, and what that means stage by stage.

    plan = resolve(Asked(recipe="compot-int4"))      # Plan(quant="int4-g32", method="gptq", ...)

A recipe is a name for a set of options; options that are given beside it win.

| recipe       | matrices                                                                      |
|--------------|-------------------------------------------------------------------------------|
| int4, int3   | all in that encoding, by GPTQ                                                 |
| mixed        | an encoding for each, by measured sensitivity, within --budget-mb             |
| compot-int8  | COMPOT, ratio 0.2 or what --budget-mb asks for, factors of 8 bits             |
| compot-int4  | the same, A in int4-g32 by GPTQ, values of S in 6 bits                        |
| auto         | those of the above that fit --budget-mb are made and measured, the best stays |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConvertError
from ..kernels.encodings import DEFAULT, ENCODINGS
from .calibrate import SAMPLE_NAME, Calibration
from .linearize.options import LinearizeOptions
from .quantize.job import FEW_BITS, METHODS
from .stages.compot import VALUE_BITS, Factoring
from .stages.part_encodings import CHANNELS
from .stages.quantize import encodings_asked

RECIPES = ("int4", "int3", "mixed", "compot-int8", "compot-int4", "auto")
RATIO = 0.2  # of COMPOT, where nothing else decides it
MB = 1_000_000
KEPT = "as the source"  # has it


@dataclass(frozen=True)
class Asked:
    """The options of `convert`, as they were given; None: not given."""

    recipe: str | None = None
    quant: str | None = None
    embed_quant: str | None = None
    method: str | None = None
    compot: float | None = None
    budget_mb: float | None = None
    heal: int = 0
    calibration: Calibration | None = None
    linearize: LinearizeOptions | None = None
    kv_share: int = 0


@dataclass(frozen=True)
class Plan:
    """What the stages need. quant, embed_quant: canonical. budget: bytes of the bundle, 0 for none;
    what is to be found within it: `mixed` encodings or `factoring`'s ratio. calibration: None where
    nothing needs one. kept: every weight stays as the source has it, floats as floats, but the ends
    where `ends` names an encoding for them."""

    quant: str
    embed_quant: str
    method: str
    mixed: bool = False
    factoring: Factoring | None = None
    budget: int = 0
    heal: int = 0
    calibration: Calibration | None = None
    kept: bool = False
    ends: str = ""
    linearize: LinearizeOptions | None = None
    kv_share: int = 0

    @property
    def told(self) -> tuple[str, str]:
        """How matrices, and embedding and head, are stored, in the words of a report."""
        return (KEPT, self.ends or KEPT) if self.kept else (self.quant, self.embed_quant)

    @property
    def title(self) -> str:
        """What tells it from others."""
        if self.mixed or self.kept:
            return KEPT if self.kept else "mixed"
        if self.factoring is not None:
            return f"COMPOT {self.quant}"
        return f"{self.quant} {self.method}"

    def options(self) -> list[str]:
        """As options of the command, which repeat it."""
        ends = ["--embed-quant", self.embed_quant]
        if self.kept:
            return ends if self.ends else []
        found = ["--quant", "mixed"] if self.mixed else ["--quant", self.quant, *ends]
        found += ["--method", self.method]
        if self.factoring is not None and self.factoring.ratio:
            found += ["--compot", str(self.factoring.ratio)]
        elif self.factoring is not None:
            kind = "8" if self.factoring.a == "int8-g32" else "4"
            found += ["--recipe", f"compot-int{kind}"]
        if self.budget:
            found += ["--budget-mb", f"{self.budget / MB:.6f}".rstrip("0").rstrip(".")]
        if self.linearize is not None:
            found += linearize_options(self.linearize)
        if self.kv_share:
            found += ["--kv-share", str(self.kv_share)]
        if self.heal:
            found += ["--heal", str(self.heal)]
        if self.calibration is not None:
            if self.calibration.name != SAMPLE_NAME:
                found += ["--calibration", "TEXT"]
            found += ["--sequences", str(self.calibration.sequences)]
        return found


def linearize_options(asked: LinearizeOptions) -> list[str]:
    """As options of the command."""
    found = ["--linearize", str(asked.layers), "--tokens", str(asked.tokens)]
    found += ["--features", str(asked.features)] if asked.features else []
    if asked.window is not None:
        found += ["--window", str(asked.chunk if asked.window else 0)]
    found += ["--serve", str(asked.serve)] if asked.serve else []
    return found + (["--anyway"] if asked.anyway else [])


def resolve(asked: Asked) -> Plan:
    """The plan of one conversion (not of `auto`, see `auto.py`). Raises ConvertError for options
    that are unknown or contradict each other."""
    _check(asked)
    recipe, quant = asked.recipe or "", asked.quant
    mixed = "mixed" in (recipe, quant)
    budget = round((asked.budget_mb or 0) * MB)
    names = {"compot-int8": "int8", "compot-int4": "int4", "int3": "int3", "int4": "int4"}
    if mixed:
        _check_mixed(asked)
        quant = None
    quant, embed = encodings_asked(quant or names.get(recipe, DEFAULT), asked.embed_quant)
    factoring = None
    if recipe.startswith("compot") or asked.compot is not None:
        if quant not in VALUE_BITS:
            raise ConvertError(
                f"COMPOT factors in {quant}, expected one of {list(VALUE_BITS)}",
                code="compot-quant",
                hint="int8 and int4 are the usual ones",
            )
        ratio = asked.compot if asked.compot is not None else (0.0 if budget else RATIO)
        factoring = Factoring(ratio, quant, VALUE_BITS[quant])
    elif budget and not mixed:
        raise ConvertError(
            f"--budget-mb {asked.budget_mb:g} with nothing that it could change",
            code="budget",
            hint="add --recipe auto, --recipe mixed or --recipe compot-int4",
        )
    method = asked.method or default_method(quant)
    needs = method == "gptq" or mixed or factoring is not None or asked.heal > 0
    needs = needs or asked.linearize is not None or asked.kv_share > 0
    calibration = asked.calibration
    if needs and calibration is None:
        calibration = Calibration.sample()
    if calibration is not None and not needs:
        raise ConvertError(
            f"a calibration text, and method {method} that reads none",
            code="calibration",
            hint="use --method gptq, or leave --calibration and --sequences out",
        )
    return Plan(
        quant,
        embed,
        method,
        mixed,
        factoring,
        budget,
        asked.heal,
        calibration,
        linearize=asked.linearize,
        kv_share=asked.kv_share,
    )


def is_kept(asked: Asked) -> bool:
    """Whether weights that a source has in codes are taken over: unless others are asked for."""
    names = ("recipe", "quant", "method", "compot", "budget_mb", "linearize")
    return (
        not asked.heal
        and not asked.kv_share
        and all(getattr(asked, name) is None for name in names)
    )


def taken_over(asked: Asked) -> Plan:
    """The plan that leaves a source's weights as they are. Raises ConvertError for a calibration,
    which nothing reads."""
    if asked.calibration is not None:
        raise ConvertError(
            "a calibration text, and a source whose weights are in codes already",
            code="calibration",
            hint="these are taken over as they are; with --quant they are chosen anew",
        )
    ends = "" if asked.embed_quant is None else encodings_asked(asked.embed_quant, None)[0]
    return Plan("f16", ends or "f16", "rtn", kept=True, ends=ends)


def _check_mixed(asked: Asked) -> None:
    """Raise ConvertError for what mixed encodings contradict."""
    others = {
        "--compot": asked.compot,
        "--embed-quant": asked.embed_quant,
        "--quant": None if asked.quant == "mixed" else asked.quant,
        "--recipe": asked.recipe if (asked.recipe or "").startswith("compot") else None,
    }
    for option, value in others.items():
        if value is not None:
            raise ConvertError(
                f"mixed encodings and {option} {value}, expected one of them",
                code="recipe",
                hint="mixed chooses the encodings of all matrices",
            )
    if asked.budget_mb is None:
        raise ConvertError(
            "mixed encodings without a number of bytes, expected --budget-mb",
            code="budget",
            hint="--recipe mixed --budget-mb 20",
        )


def is_auto(asked: Asked) -> bool:
    """Whether conversions are tried, see `auto.py`: by its name, or for a budget and nothing that
    fills it. Raises ConvertError for options that leave nothing to try."""
    plain = asked.recipe is None and asked.quant is None and asked.compot is None
    if asked.recipe != "auto" and (asked.budget_mb is None or not plain):
        return False
    _check(asked)
    others = {
        "--compot": asked.compot,
        "--linearize": asked.linearize and asked.linearize.layers,
        "--kv-share": asked.kv_share or None,
        "--quant": asked.quant if asked.quant == "mixed" or asked.budget_mb is not None else None,
    }
    for option, value in others.items():
        if value is not None:
            raise ConvertError(
                f"--recipe auto and {option} {value}, expected one of them",
                code="recipe",
                hint="auto chooses among encodings and ratios within --budget-mb, or within what "
                "--quant alone would take",
            )
    return True


def for_pictures(asked: Asked) -> Asked:
    """The options for a picture pipeline, of which no text is a calibration: to nearest by default,
    int8 by channels (`part_encodings.py`). Raises ConvertError for options that need a text."""
    names = {"int3": "int3", "int4": "int4", None: None}
    needing = {
        "--recipe": None if asked.recipe in names else asked.recipe,
        "--quant": "mixed" if asked.quant == "mixed" else None,
        "--method": "gptq" if asked.method == "gptq" else None,
        "--compot": asked.compot,
        "--budget-mb": asked.budget_mb,
        "--heal": asked.heal or None,
        "--linearize": asked.linearize and asked.linearize.layers,
        "--kv-share": asked.kv_share or None,
        "--calibration": asked.calibration and asked.calibration.name,
    }
    for option, value in needing.items():
        if value is not None:
            raise ConvertError(
                f"{option} {value} for a picture pipeline, expected options that need no text to "
                "calibrate on",
                code="picture-option",
                hint="--quant, --embed-quant, --method rtn or hqq, --recipe int4 or int3",
            )
    quant, method = asked.quant or names[asked.recipe], asked.method or "rtn"
    if (quant, method) == ("int8", "rtn"):
        quant = CHANNELS
    return replace(asked, recipe=None, quant=quant, method=method)


def default_method(quant: str) -> str:
    """gptq where there are few codes to choose from."""
    grid = ENCODINGS[quant].grid
    return "gptq" if grid is not None and grid.bits <= FEW_BITS else "rtn"


def check_types(**given: tuple[Any, type | tuple[type, ...], str]) -> None:
    """Raise ConvertError for the first value that is not None and not of its type. given: by its
    name a value, a type or several, and what is expected in words."""
    for name, (value, kind, expected) in given.items():
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            continue
        raise ConvertError(
            f"{name} is {str(value)[:80]!r} of type {type(value).__name__}, expected {expected}",
            code="parameter-type",
        )


def _check(asked: Asked) -> None:
    check_types(
        compot=(asked.compot, (int, float), "a ratio"),
        budget_mb=(asked.budget_mb, (int, float), "a number of megabytes"),
        heal=(asked.heal, int, "a number of tokens"),
        kv_share=(asked.kv_share, int, "a number of layers"),
        linearize=(asked.linearize, LinearizeOptions, "LinearizeOptions"),
        calibration=(asked.calibration, Calibration, "a Calibration: Calibration.read(path)"),
    )
    if asked.recipe is not None and asked.recipe not in RECIPES:
        raise ConvertError(
            f"recipe {asked.recipe!r}, expected one of {list(RECIPES)}",
            code="recipe",
            hint="int4 is what is made without one",
        )
    if asked.method is not None and asked.method not in METHODS:
        raise ConvertError(
            f"method {asked.method!r}, expected one of {list(METHODS)}", code="method"
        )
    if asked.compot is not None and not 0 < asked.compot < 1:
        raise ConvertError(
            f"--compot {asked.compot:g}, expected a ratio between 0 and 1",
            code="compot-ratio",
            hint="0.2 removes a fifth of the matrices' fp16 bits",
        )
    if asked.compot is not None and asked.budget_mb is not None:
        raise ConvertError(
            f"--compot {asked.compot:g} and --budget-mb {asked.budget_mb:g}, expected one of them",
            code="budget",
            hint="with a budget the ratio is found: --recipe compot-int4 --budget-mb N",
        )
    if asked.budget_mb is not None and not 0 < asked.budget_mb < 1e7:
        raise ConvertError(
            f"--budget-mb {asked.budget_mb}, expected a number of megabytes", code="budget"
        )
    if asked.heal < 0:
        raise ConvertError(f"--heal {asked.heal}, expected a number of tokens", code="heal")
    if asked.kv_share < 0:
        raise ConvertError(
            f"--kv-share {asked.kv_share}, expected a number of layers", code="kv-share"
        )


def candidates(asked: Asked) -> list[Asked]:
    """What `auto` tries: whole encodings, then what fills the budget exactly."""
    common = replace(asked, recipe=None, budget_mb=None)
    whole = [replace(common, quant=f"int{bits}") for bits in (8, 6, 5, 4, 3, 2)]
    tried = [want if _reads_text(want) else replace(want, calibration=None) for want in whole]
    filled = ["compot-int8", "compot-int4"]
    if asked.embed_quant is None:  # mixed chooses it
        filled.insert(0, "mixed")
    return tried + [replace(asked, recipe=name, quant=None) for name in filled]


def _reads_text(asked: Asked) -> bool:
    """Whether a whole encoding needs a calibration."""
    method = asked.method or default_method(encodings_asked(asked.quant or DEFAULT, None)[0])
    return method == "gptq" or asked.heal > 0
