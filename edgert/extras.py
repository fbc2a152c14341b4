"""Packages that a plain installation leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import EdgertError

CODE = "missing-package"
EXTRAS = {  # of README's table, by a package that each brings
    "distributed": "cluster",
    "gguf": "convert",
    "huggingface_hub": "convert",
    "matplotlib": "report",
    "numba": "jit",
    "onnx": "export",
    "onnxruntime": "ort",
    "onnxruntime-gpu": "ort-gpu",
    "onnxruntime-openvino": "openvino",
    "scipy": "scaling",
    "torch": "convert",
}


def require(package: str, purpose: str, error: type[EdgertError] = EdgertError) -> None:
    """Raise `error` with the command that installs a package, unless it is there."""
    if find_spec(package) is None:
        raise missing(package, purpose, error)


def missing(package: str, purpose: str, error: type[EdgertError] = EdgertError) -> EdgertError:
    """The error about a package that is not installed. purpose: "writing an ONNX model"."""
    return error(
        f"{purpose} needs the package {package}, which is not installed",
        code=CODE,
        hint=install_hint(package),
        package=package,
    )


def install_hint(package: str, flags: str = "") -> str:
    """The command that installs a package, and the extra that brings it if one does."""
    extra = f', or pip install "edgert[{EXTRAS[package]}]"' if package in EXTRAS else ""
    return f"pip install {flags}{package}{extra}"
