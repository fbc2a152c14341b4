"""Packages that a plain installation leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import EdgertError

CODE = "missing-package"


def require(package: str, purpose: str, error: type[EdgertError] = EdgertError) -> None:
    """Raise `error` with the command that installs a package, unless it is there."""
    if find_spec(package) is None:
        raise missing(package, purpose, error)


def missing(package: str, purpose: str, error: type[EdgertError] = EdgertError) -> EdgertError:
    """The error about a package that is not installed. purpose: "writing an ONNX model"."""
    return error(
        f"{purpose} needs the package {package}, which is not installed",
        code=CODE,
        hint=f"pip install {package}",
        package=package,
    )
