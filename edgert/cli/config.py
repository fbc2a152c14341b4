"""Values for flags that the command line leaves out: `EDGERT_*` variables and a TOML file.

A flag is looked up in this order: command line, environment, file, then what the bundle advises and
the default. Nothing here knows a flag by name: whatever a verb declares with click has a variable
(`--ctx-size`: EDGERT_CTX_SIZE) and a key (`ctx_size`), which stands at the top for all verbs that
have the flag or in a table for one verb:

    ctx_size = 4096

    [chat]
    system = "Answer briefly."
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..errors import RequestError
from ..notices import NOTICE, notice

VARIABLE = "EDGERT_CONFIG"
# Other names of ours that begin like a flag's variable.
_OTHERS = frozenset(
    {
        VARIABLE, "EDGERT_CACHE", "EDGERT_ISA", "EDGERT_ISA_FORCE", "EDGERT_KERNEL_LIBRARY",
        "EDGERT_KERNELS", "EDGERT_WHEEL_PLATFORM", "EDGERT_SHARED_DATA", "EDGERT_ARM",
    }
)  # fmt: skip
NUMBERS = (type(click.INT), type(click.FLOAT))  # ranges are of these
FILE_BYTES = 1 << 20


FLAGS_TOO = frozenset({"draft"})  # verbs that are flags of others: a table is the verb's


@dataclass(frozen=True)
class Config:
    """A configuration file. path: where it is, or would be. verbs: names that may head a table.
    values: {} where there is no file."""

    path: Path
    verbs: Collection[str]
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, verbs: Collection[str]) -> Config:
        """The file that EDGERT_CONFIG names, else `config.toml` in the user's folder for such
        files, if there is one. Raises RequestError for one that cannot be read."""
        named = os.environ.get(VARIABLE)
        path = Path(named) if named else _default_path()
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES + 1)
        except FileNotFoundError:
            if named:
                raise _fault(f"{path}: no such file, {VARIABLE} names it", "") from None
            return cls(path, verbs)
        except OSError as error:
            raise _fault(f"{path}: {error.strerror}", "") from None
        return cls(path, verbs, _parsed(data, path))

    def shared(self, command: click.Command) -> dict[str, Any]:
        """Values of the keys at the top that are flags of a command."""
        mine = _keys(command)
        found: dict[str, Any] = {}
        for key, value in self._tops().items():
            if _plain(key) in mine:
                self._put(found, mine[_plain(key)], key, value)
        return found

    def for_verb(self, verb: str, command: click.Command) -> dict[str, Any]:
        """Values for a verb's parameters; its own table goes before the top. Raises RequestError
        for values of a wrong type, a flag that is given twice, and flags it does not have."""
        own, mine = self.values.get(verb, {}), _keys(command)
        own = {} if verb in FLAGS_TOO and not isinstance(own, dict) else own
        if not isinstance(own, dict):
            raise self._unlike(verb, own, f"a table [{verb}] of flags")
        narrow: dict[str, Any] = {}
        for key, value in own.items():
            if _plain(key) not in mine:
                raise self._unknown(f"{verb}.{key}", mine)
            self._put(narrow, mine[_plain(key)], f"{verb}.{key}", value)
        return self.shared(command) | narrow

    def check(self, commands: Iterable[click.Command]) -> None:
        """Raises RequestError for a key at the top, or a table, that is neither a verb nor a flag
        of any of the commands. These are asked for one by one, while such keys are left."""
        left, known = set(self._tops()), set()
        for command in commands if left else ():
            known |= set(_keys(command))
            left = {key for key in left if _plain(key) not in known}
            if not left:
                break
        if left:
            raise self._unknown(min(left), {*known, *self.verbs})

    def _tops(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.values.items()
            if key not in self.verbs or (key in FLAGS_TOO and not isinstance(value, dict))
        }

    def _put(self, found: dict[str, Any], option: click.Option, key: str, value: Any) -> None:
        if option.name is None or option.name in found:
            raise _fault(f"{self.path}: {key!r} gives a flag a second value, expected one", key)
        found[option.name] = self._converted(option, key, value)

    def _converted(self, option: click.Option, key: str, value: Any) -> Any:
        """The value as click takes it; click itself parses texts and numbers."""
        if option.is_flag and not option.count:
            if not isinstance(value, bool):
                raise self._unlike(key, value, "true or false")
            return value
        if option.metavar == "JSON" and isinstance(value, dict):
            return json.dumps(value)
        values = value if option.multiple and isinstance(value, list) else [value]
        numbers = values is not value or isinstance(option.type, NUMBERS)
        for each in values:
            if not _fits(each, numbers):
                kind = "a text or a number"
                if option.multiple:
                    kind = "a list of texts" + (" or numbers" if numbers else "")
                raise self._unlike(key, each, kind)
        return list(map(str, values)) if option.multiple else str(value)

    def _unlike(self, key: str, value: Any, expected: str) -> RequestError:
        return _fault(f"{self.path}: {key} is {str(value)[:80]!r}, expected {expected}", key)

    def _unknown(self, key: str, known: Iterable[str]) -> RequestError:
        near = get_close_matches(_plain(key).rpartition(".")[2], known, n=1)
        said = f"did you mean {near[0]!r}?" if near else "expected the name of a flag or a verb"
        return _fault(f"{self.path}: unknown key {key!r}, {said}", key)


def add_sources(command: click.Command) -> click.Command:
    """Let every flag of a command read its variable, and `--help` show it."""
    for option in _options(command):
        variables = [variable_of(command, name) for name in _names(option)]
        if variables and option.envvar is None:
            option.envvar = variables[0] if len(variables) == 1 else variables
            option.show_envvar = True
        if option.multiple:
            split = partial(_listed, numbers=isinstance(option.type, NUMBERS))
            option.type = copy(option.type)
            setattr(option.type, "split_envvar_value", split)  # noqa: B010
    return command


def variable_of(command: click.Command, name: str) -> str:
    """The variable of a command's flag; with the verb in it where the plain name is taken."""
    plain = f"EDGERT_{name.upper()}"
    return plain if plain not in _OTHERS else f"EDGERT_{command.name}_{name}".upper()


def named_like_flags(commands: Iterable[click.Command]) -> None:
    """A notice for each EDGERT_* variable that is no flag's, and is called much like one. The
    commands are asked for one by one, while there are such variables."""
    left = {name for name in os.environ if name.startswith("EDGERT_")} - _OTHERS
    known = set(_OTHERS)
    for command in commands if left else ():
        known |= {variable_of(command, name) for name in _keys(command)}
        left -= known
        if not left:
            return
    for name in sorted(left):
        near = get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            notice(f"{name} is no flag's variable, did you mean {near[0]}?", NOTICE)


def _default_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("edgert", appauthor=False) / "config.toml"


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if len(data) > FILE_BYTES:
        raise _fault(f"{path}: more than {FILE_BYTES} bytes", "")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise _fault(f"{path}: no TOML: {error}", "") from None


def _fault(message: str, key: str) -> RequestError:
    hint = "README.md, Configuration, describes this file; edgert VERB --help lists flags"
    return RequestError(message, code="config", hint=hint, field=key)


def _listed(value: str, *, numbers: bool = False) -> list[Any]:
    """Values of a flag that may be repeated: a JSON list, of numbers or of texts, or one text."""
    if value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            raise click.BadParameter(f"{value[:80]!r} is no JSON list, expected one") from None
        for each in found:
            if not _fits(each, numbers):
                raise click.BadParameter(
                    f"{value[:80]!r} holds {json.dumps(each)[:40]}, expected a list of "
                    f"{'numbers' if numbers else 'texts'}"
                )
        return list(map(str, found))
    return [value]


def _fits(value: Any, numbers: bool) -> bool:
    """Whether a list of a flag's values may hold it. Numbers may be written as texts."""
    return isinstance(value, str) or (
        numbers and isinstance(value, (int, float)) and not isinstance(value, bool)
    )


def _options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and p.name != "version"]


def _names(option: click.Option) -> list[str]:
    return [_plain(flag.lstrip("-")) for flag in option.opts if flag.startswith("--")]


def _keys(command: click.Command) -> dict[str, click.Option]:
    """Options by the keys that a file may call them."""
    return {name: option for option in _options(command) for name in _names(option)}


def _plain(key: str) -> str:
    return key.replace("-", "_")
