"""Execution providers: which exist here, what to install, and where the nodes of a model went.

A device is chosen explicitly and nothing falls back: onnxruntime's own fallbacks are switched off,
a provider that did not load is an error, and so is a node that ended up on the CPU unless the
caller allows it.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DeviceError
from ..extras import install_hint
from . import ort_mode

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """A device name and the execution provider behind it.

    memory: where states live ("cuda" or host memory, "cpu"). packages: pip package by
    `sys.platform`, "*" for the others. plugin: module of a provider that ships apart from
    onnxruntime and registers a library. half: whether float16 activations are the better choice.
    standard: wants the standard dialect (no GroupQueryAttention there). half_only: has no float32
    GroupQueryAttention, which graphs with keys and values need. float_weights: has no kernel for
    weights quantized by blocks.
    """

    device: str
    name: str
    packages: Mapping[str, str]
    memory: str = "cpu"
    index: int = 0
    plugin: str = ""
    half: bool = False
    standard: bool = False
    half_only: bool = False
    float_weights: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def with_options(self, **options: str) -> Provider:
        """A copy with provider options added."""
        return replace(self, options={**self.options, **options})


def _table(*providers: Provider) -> dict[str, Provider]:
    return {provider.device: provider for provider in providers}


_GPU = {"linux": "onnxruntime-gpu", "win32": "onnxruntime-gpu"}
DEVICES = _table(
    Provider("ort-cpu", CPU, {"*": "onnxruntime"}),
    Provider(
        "cuda", "CUDAExecutionProvider", _GPU, memory="cuda", half=True, half_only=True
    ),
    Provider(
        "tensorrt", "TensorrtExecutionProvider", _GPU, memory="cuda", half=True, standard=True
    ),
    Provider(
        "openvino", "OpenVINOExecutionProvider", {"*": "onnxruntime-openvino"}, standard=True
    ),
    Provider(
        "qnn", "QNNExecutionProvider", {"*": "onnxruntime-qnn"},
        plugin="onnxruntime_qnn", standard=True, float_weights=True,
    ),
    Provider("coreml", "CoreMLExecutionProvider", {"darwin": "onnxruntime"}, standard=True),
    Provider("directml", "DmlExecutionProvider", {"win32": "onnxruntime-directml"}, half=True),
    Provider(
        "webgpu", "WebGpuExecutionProvider", {"*": "onnxruntime-ep-webgpu"},
        plugin="onnxruntime_ep_webgpu", half=True,
    ),
)  # fmt: skip


class Placement(NamedTuple):
    """Where one node of an optimised model runs."""

    provider: str
    op: str
    node: str


class Choice(NamedTuple):
    """A device as the caller asked for it.

    allow_cpu_nodes: let single nodes run on the CPU. graph: capture one-token steps (CUDA graphs).
    """

    provider: Provider
    allow_cpu_nodes: bool = False
    graph: bool = False


def parse_device(text: str) -> Choice:
    """A device name with options: `cuda`, `cuda:graph,device_id=1`, `openvino:allow-cpu-nodes`.

    `graph` and `allow-cpu-nodes` are ours, `key=value` goes to the provider as it is, or to
    onnxruntime's session where the key has a dot (`ep.cuda.fpa_intb_gemm=1`). DeviceError for
    unknown names and for providers that are not here, naming the package.
    """
    device, _, rest = text.partition(":")
    provider = find_provider(device)
    flags, options = set(), {}
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        if equals:
            options[key] = value
        else:
            flags.add(key)
    unknown = flags - {"graph", "allow-cpu-nodes"}
    if unknown or ("graph" in flags and provider.name != DEVICES["cuda"].name):
        raise DeviceError(
            f"device {text!r} has flags {sorted(flags)}, expected allow-cpu-nodes, graph (cuda "
            "only) or provider options as key=value",
            code="device-options",
        )
    if provider.memory == "cuda" and options.get("device_id", "0").isdecimal():
        provider = replace(provider, index=int(options.get("device_id", "0")))
    provider = provider.with_options(**options)
    return Choice(provider, "allow-cpu-nodes" in flags, "graph" in flags)


def find_provider(device: str) -> Provider:
    """The provider of a device name; DeviceError names the package when it is not here."""
    provider = DEVICES.get(device)
    if device in ("cpu", "reference"):
        raise DeviceError(
            f"device {device!r} runs without onnxruntime and takes no options, expected it alone",
            code="device-options",
            hint="onnxruntime's own CPU provider is called ort-cpu",
        )
    if provider is None:
        raise DeviceError(
            f"device {device!r} is unknown, expected one of {['auto', 'cpu', *DEVICES]}",
            code="device",
        )
    if not is_available(provider):
        raise _missing(provider)
    return provider


def available() -> dict[str, bool]:
    """Every device name and whether its provider is here."""
    return {name: is_available(provider) for name, provider in DEVICES.items()}


def is_available(provider: Provider) -> bool:
    """Whether onnxruntime is installed and has this provider, built in or as an installed plugin
    with a device."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    if not _has_plugin(provider) and provider.name in onnxruntime.get_available_providers():
        return True
    return bool(_plugin_devices(provider))


def _has_plugin(provider: Provider) -> bool:
    """Whether the provider's own package is here. A registered one is among onnxruntime's
    available providers even where it finds no device."""
    return bool(provider.plugin) and importlib.util.find_spec(provider.plugin) is not None


def _plugin_devices(provider: Provider) -> list[Any]:
    """Devices of a plugin provider (onnxruntime 1.23 and later), registering its library first."""
    import onnxruntime

    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider.name]
    if found or not _has_plugin(provider):
        return found
    if provider.name not in onnxruntime.get_available_providers():
        library = importlib.import_module(provider.plugin).get_library_path()
        onnxruntime.register_execution_provider_library(provider.name, library)
    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider.name]


def _missing(provider: Provider) -> DeviceError:
    here = f"{sys.platform} {platform.machine()}"
    package = provider.packages.get(sys.platform, provider.packages.get("*", ""))
    found = " of onnxruntime, which is not installed"
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        having = onnxruntime.get_available_providers()
        found = f", onnxruntime {onnxruntime.__version__} on {here} has {having}"
    if not package:
        hint = f"device {provider.device!r} exists on {sorted(provider.packages)} only"
    elif sys.platform == "linux" and platform.machine() == "aarch64" and "-gpu" in package:
        hint = (
            "on a Jetson install the onnxruntime-gpu wheel made for its JetPack, see "
            "devices/jetson.md"
        )
    elif _has_plugin(provider):
        hint = f"{package} is installed but finds no device it can use: install the device's driver"
    elif provider.plugin:
        hint = install_hint(package)
    else:
        builds = [name for name in installed_builds() if name != package]
        hint = install_hint(package, "--upgrade ")
        if builds and package != "onnxruntime":
            hint = f"pip uninstall {' '.join(builds)} && pip install {package}"
    return DeviceError(
        f"device {provider.device!r} needs {provider.name}{found}" + _overlapping_builds(),
        code="provider-missing",
        hint=hint,
        package=package,
    )


def installed_builds() -> list[str]:
    """Distributions that all provide the module `onnxruntime`; more than one overwrite another."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get("onnxruntime", ())))


def _overlapping_builds() -> str:
    builds = installed_builds()
    return f"; {builds} are installed over one another, keep one" if len(builds) > 1 else ""


def create_session(
    model: Path, provider: Provider, *, threads: int | None = None, allow_cpu_nodes: bool = False
) -> Any:
    """An InferenceSession on `provider` alone; DeviceError when it or a node of it is not there."""
    import onnxruntime

    options = _session_options(provider, threads, allow_cpu_nodes)
    own = {key: value for key, value in provider.options.items() if "." not in key}
    if not is_available(provider):
        raise _missing(provider)
    plugins = _plugin_devices(provider) if _has_plugin(provider) else []
    if plugins:
        options.add_provider_for_devices(plugins, own)
    chosen = None if plugins else [(provider.name, own)]
    try:
        with ort_mode.opening(provider.options.get(ort_mode.OPTION) == "1"):
            session = onnxruntime.InferenceSession(
                str(model), options, providers=chosen, enable_fallback=0
            )
    except Exception as error:  # onnxruntime raises its own types, which share no base
        raise DeviceError(
            f"{provider.name} cannot load {model}: {error}",
            code="provider-load",
            hint="run with --allow-cpu-nodes if it names nodes it cannot take, or see "
            "`edgert doctor`",
        ) from error
    if provider.name not in session.get_providers():
        raise DeviceError(
            f"{provider.name} did not load (onnxruntime used {session.get_providers()})"
            f"{_overlapping_builds()}",
            code="provider-load",
            hint="its libraries are missing or do not fit the driver; see `edgert doctor`",
        )
    if provider.name != CPU and not allow_cpu_nodes:
        refuse_cpu_nodes(session, provider)
    return session


def _session_options(provider: Provider, threads: int | None, allow_cpu_nodes: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    elif provider.name != CPU and not allow_cpu_nodes:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for key, value in provider.options.items():
        if "." in key:
            options.add_session_config_entry(key, value)
    return options


def placement(session: Any) -> list[Placement]:
    """Every node of a session made by `create_session`, with its provider; empty when this
    onnxruntime (before 1.24) does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        Placement(part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def refuse_cpu_nodes(session: Any, provider: Provider) -> None:
    """DeviceError naming the nodes of a session that do not run on its provider."""
    left = [p for p in placement(session) if p.provider != provider.name]
    if left:
        names = ", ".join(f"{p.op} {p.node!r}".strip() for p in left[:8])
        raise DeviceError(
            f"{len(left)} nodes run on {sorted({p.provider for p in left})} instead of "
            f"{provider.name}: {names}" + (", …" if len(left) > 8 else ""),
            code="cpu-nodes",
            hint="run with --allow-cpu-nodes to accept that, or choose another device",
            nodes=[p.node for p in left],
        )
