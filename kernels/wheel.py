"""Setuptools commands that compile the kernels when a wheel is built, or an editable installation.

EDGERT_KERNELS says for which machines: "host" (every instruction set of this machine's family, the
default), "none", "all", or families as `kernels/build.py` spells them, with spaces between. "host"
means none where there are no kernels for the machine. Set EDGERT_WHEEL_PLATFORM to the wheel's
platform tag where that is not this machine's.

Failures raise SystemExit: in editable mode setuptools makes a warning of every other error of
`build_py` and goes on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
FAMILIES, PLATFORM = "EDGERT_KERNELS", "EDGERT_WHEEL_PLATFORM"


def _load() -> Any:
    """`build.py` from beside this file: there is no package around it yet."""
    spec: Any = importlib.util.spec_from_file_location("edgert_kernels_build", HERE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = _load()


def asked() -> list[str]:
    return os.environ.get(FAMILIES, "host").split()


def wanted() -> list[str] | None:
    """Families to build for, None for none."""
    if asked() in (["none"], []) or (asked() == ["host"] and no_host()):
        return None
    try:
        found: list[str] = builder.families_of(asked())
        return found
    except builder.BuildError as error:
        raise SystemExit(f"error: {FAMILIES}: {error}; or host, none, all") from None


def no_host() -> bool:
    """Whether there are no kernels for this machine."""
    return builder.own_family() not in builder.FAMILIES


class BuildPy(build_py):
    """Python files, and the libraries beside them."""

    editable_mode = False

    def run(self) -> None:
        families = wanted()
        package = HERE
        if not self.editable_mode:
            package = Path(self.build_lib, "edgert", "kernels").resolve()
        if package != HERE:
            # Setuptools packs whatever lies there, also modules that the checkout no longer has. It
            # keeps in mind which folders it made: they stay.
            for folder, _, names in os.walk(package):
                for name in names:
                    os.unlink(Path(folder, name))
        super().run()
        if families is None:
            if asked() == ["host"]:
                print(f"no kernels are compiled for {builder.own_family()}", file=sys.stderr)
            return
        if self.editable_mode and builder.is_current(package / "built", families):
            return
        try:
            with builder.stoppable():
                compile_for(families, package)
        except (builder.BuildError, OSError) as error:
            raise SystemExit(
                f"error: the kernels were not compiled: {error}; "
                f"{FAMILIES}=none installs without them"
            ) from None


def compile_for(families: list[str], package: Path) -> None:
    """Libraries in `package`, whose sources must be those that they are made from."""
    packed = builder.sources_hash(package)
    if packed != builder.sources_hash():
        raise builder.BuildError(
            f"the kernel sources in {package} are not those of {HERE}; is every folder of them "
            "among the packages in pyproject.toml?"
        )
    builder.build(package / "built", families)
    made = json.loads((package / "built" / builder.MANIFEST).read_bytes())["sources"]
    if made != packed:
        raise builder.BuildError(f"{package} has sources {packed[:12]}, the libraries {made[:12]}")


class BdistWheel(bdist_wheel):
    """A wheel for one platform and every Python 3."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.distribution.has_ext_modules = lambda: wanted() is not None

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        if wanted() is None:
            return "py3", "none", "any"
        return "py3", "none", os.environ.get(PLATFORM) or platform
