"""Profiles by name, of those that come along, or by path.

profile = load("jetson-orin-nano-8gb@25w")     # a device, in one of its power modes
profile = load("my-board.toml")                # a file of one's own, or what a probe wrote
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from edgert.errors import DeviceError
from edgert.limits import PROFILE_BYTES
from edgert.storage.typed import Reader

from .profile import Profile, faults

PROFILE = Reader(Profile)

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Devices that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(which: str) -> Profile:
    """A profile by name or path (anything with a slash, or that ends in .toml), with `@MODE` behind
    it for a power mode, whose times are then of the roofline alone. Raises DeviceError for unknown
    names and modes, and for faults of a file."""
    stem, mode = _split(which)
    if stem.endswith(".toml") or "/" in stem or "\\" in stem:
        profile = read(Path(stem))
    elif stem in (known := names()):
        profile = read(FOLDER / f"{stem}.toml")
    else:
        near = get_close_matches(stem, known, n=1, cutoff=0.4)
        raise DeviceError(
            f"no device {stem[:60]!r}, expected one of {', '.join(known)}, or a .toml file",
            code="device-name",
            hint=f"did you mean {near[0]!r}?" if near else "edgert devices list",
        )
    if not mode:
        return profile
    if mode not in profile.modes:
        raise DeviceError(
            f"{profile.name} has no power mode {mode[:60]!r}, expected one of "
            f"{sorted(profile.modes)}",
            code="device-mode",
            hint=f"edgert devices show {profile.name}",
        )
    return profile.in_mode(mode)


def _split(which: str) -> tuple[str, str]:
    """Name or path, and mode. An @ within a path is part of it."""
    stem, at, mode = which.rpartition("@")
    if not at or "/" in mode or "\\" in mode or mode.endswith(".toml"):
        return which, ""
    return stem, mode


def read(path: Path) -> Profile:
    """The profile in a TOML file."""
    try:
        with path.open("rb") as file:
            data = file.read(PROFILE_BYTES + 1)
    except OSError as error:
        raise DeviceError(
            f"{path}: {error.strerror or error}, expected a device profile",
            code="device-file",
            hint="edgert devices list names those that come along",
        ) from None
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Profile:
    """The profile of TOML bytes. Raises DeviceError with everything that is wrong."""
    if len(data) > PROFILE_BYTES:
        raise _wrong(where, [f"more than {PROFILE_BYTES} bytes"])
    try:
        profile = PROFILE.convert(_toml(data))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and msgspec's own
        raise _wrong(where, [str(error)[:400]]) from None
    if found := faults(profile):
        raise _wrong(where, found)
    return profile


def _toml(data: bytes) -> Any:
    text = data.decode("utf-8-sig")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _wrong(where: str, found: list[str]) -> DeviceError:
    listed = "; ".join(found[:12])
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return DeviceError(
        f"{where} is no device profile: {listed}{more}",
        code="device-profile",
        hint="devices/README.md says what a profile holds; `edgert devices probe -o FILE` writes "
        "one for this machine",
    )


def to_toml(profile: Profile) -> str:
    """The profile as TOML that `parse` reads again; empty and absent fields are left out."""
    lines: list[str] = []
    _table(msgspec.to_builtins(profile), "", lines)
    return "\n".join(lines) + "\n"


def _table(table: dict[str, Any], at: str, lines: list[str]) -> None:
    inner: list[tuple[str, dict[str, Any]]] = []
    arrays: list[tuple[str, list[dict[str, Any]]]] = []
    for name, value in table.items():
        key = name if name.replace("-", "").replace("_", "").isalnum() else _text(name)
        if value is None or value == {}:
            continue
        if isinstance(value, dict) and set(value) != {"value", "source", "basis"}:
            inner.append((key, value))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            arrays.append((key, list(value)))
        else:
            lines.append(f"{key} = {_value(value)}")
    for key, value in inner:
        lines += ["", f"[{at}{key}]"]
        _table(value, f"{at}{key}.", lines)
    for key, values in arrays:
        for value in values:
            lines += ["", f"[[{at}{key}]]"]
            _table(value, f"{at}{key}.", lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if "." in f"{value:.6g}" or "e" in f"{value:.6g}" else f"{value:.1f}"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value) if isinstance(value, int) else _text(str(value))


def _text(text: str) -> str:
    """A basic string; TOML's escapes are JSON's, but for DEL."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
