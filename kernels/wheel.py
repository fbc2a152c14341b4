"""Setuptools commands that compile the kernels when a wheel is built, or an editable installation.

EDGERT_KERNELS says for which machines: "host" (every instruction set of this machine's family, the
default), "none", or families as `kernels/build.py` spells them, with spaces between. Set
EDGERT_WHEEL_PLATFORM to the wheel's platform tag where that is not this machine's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

HERE = Path(__file__).resolve().parent
FAMILIES, PLATFORM = "EDGERT_KERNELS", "EDGERT_WHEEL_PLATFORM"
MACHINES = ("x86_64", "amd64", "aarch64", "arm64")


def wanted() -> list[str] | None:
    """Families to build for, [] for this machine's, None for none."""
    said = os.environ.get(FAMILIES, "host").split()
    if said == ["host"]:
        import platform

        return [] if platform.machine().lower() in MACHINES else None
    return None if said in (["none"], []) else said


class BuildPy(build_py):
    """Python files, and the libraries beside them."""

    editable_mode = False

    def run(self) -> None:
        super().run()
        families = wanted()
        if families is None:
            return
        folder = HERE / "built"
        if not self.editable_mode:
            folder = Path(self.build_lib, "edgert", "kernels", "built").resolve()
        elif self._is_current(folder):
            return
        command = [sys.executable, str(HERE / "build.py"), "--out", str(folder)]
        if families:
            command += ["--for", *families]
        if subprocess.call(command) != 0:
            raise ExecError(f"the kernels were not compiled; {FAMILIES}=none installs without them")

    @staticmethod
    def _is_current(folder: Path) -> bool:
        """Whether the libraries of the checkout were made from its sources."""
        try:
            made = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            done = subprocess.run(
                [sys.executable, str(HERE / "build.py"), "--sources"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            files = [folder / entry["file"] for entry in made["libraries"].values()]
            return made["sources"] == done.stdout.strip() and all(map(Path.is_file, files))
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError):
            return False


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
