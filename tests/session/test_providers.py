"""H34: a provider that is missing, does not load, or leaves nodes behind is an error by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from edgert.converters.onnx_emit import export

from edgert.bundle import Bundle
from edgert.errors import BundleError, DeviceError
from edgert.session import SessionOptions, auto_device, open_session, providers
from edgert.session.ort import open_ort, place
from edgert.session.ort_choice import emitted
from edgert.session.providers import DEVICES, Placement, find_provider, parse_device

from ..onnx_model import emit_model, ort_session
from ..tiny import tiny_bundle, tiny_graph, tiny_weights


def here(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that onnxruntime has these providers."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, providers.CPU])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny.edge")


@pytest.mark.parametrize(
    ("device", "platform", "machine", "says"),
    [
        ("cuda", "linux", "x86_64", "pip install onnxruntime-gpu"),
        ("cuda", "linux", "aarch64", "devices/jetson.md"),
        ("cuda", "darwin", "arm64", "exists on ['linux', 'win32'] only"),
        ("tensorrt", "win32", "AMD64", "pip install onnxruntime-gpu"),
        ("openvino", "linux", "x86_64", "pip install onnxruntime-openvino"),
        ("qnn", "win32", "ARM64", "pip install onnxruntime-qnn"),
        ("coreml", "darwin", "arm64", "pip install --upgrade onnxruntime"),
        ("coreml", "linux", "x86_64", "exists on ['darwin'] only"),
        ("directml", "win32", "AMD64", "pip install onnxruntime-directml"),
        ("webgpu", "linux", "x86_64", "pip install onnxruntime-ep-webgpu"),
    ],
)
def test_a_missing_provider_names_the_package_for_this_platform(
    device: str, platform: str, machine: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(providers, "installed_builds", lambda: ["onnxruntime-qnn"])
    with pytest.raises(DeviceError) as caught:
        find_provider(device)
    assert caught.value.code == "provider-missing"
    assert DEVICES[device].name in caught.value.message
    assert says in caught.value.hint
    if "uninstall" in caught.value.hint:  # what is really here, since one overwrites the other
        assert "pip uninstall onnxruntime-qnn && " in caught.value.hint


def test_missing_through_every_door(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    export(bundle)
    with Bundle.open(bundle) as opened:
        for door in (open_session, open_ort):
            with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
                door(opened, SessionOptions("cuda"))


def test_two_builds_over_one_another_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    builds = ["onnxruntime", "onnxruntime-gpu"]
    monkeypatch.setattr(providers, "installed_builds", lambda: builds)
    with pytest.raises(DeviceError, match="installed over one another, keep one"):
        find_provider("cuda")


def test_unknown_devices_and_flags(bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"'toaster' is unknown.*'cuda'"):
        parse_device("toaster")
    with pytest.raises(DeviceError, match=r"'cpu' .* takes no options"):
        parse_device("cpu:graph")
    with pytest.raises(DeviceError, match=r"flags \['fast'\]"):
        parse_device("ort-cpu:fast")
    with pytest.raises(DeviceError, match=r"graph \(cuda only\)"):
        parse_device("ort-cpu:graph")
    with Bundle.open(bundle) as opened, pytest.raises(DeviceError, match="kv_bits is 16"):
        open_session(opened, SessionOptions(device="ort-cpu", kv_bits=16))


def test_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "CUDAExecutionProvider")
    choice = parse_device("cuda:graph,device_id=2,allow-cpu-nodes")
    assert (choice.graph, choice.allow_cpu_nodes, choice.provider.index) == (True, True, 2)
    assert choice.provider.options == {"device_id": "2"}


@pytest.mark.parametrize(
    ("device", "package", "extra"),
    [("ort-cpu", "onnxruntime", "ort"), ("cuda", "onnxruntime-gpu", "ort-gpu")],
)
def test_without_onnxruntime_a_device_names_its_package(
    device: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(providers, "installed_builds", list)
    assert not any(providers.available().values())
    with pytest.raises(DeviceError, match="of onnxruntime, which is not installed") as caught:
        find_provider(device)
    said = f'pip install --upgrade {package}, or pip install "edgert[{extra}]"'
    assert caught.value.hint == said


def test_options_with_a_dot_reach_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the provider, which would refuse them."""
    graph, seen = tiny_graph(), {}

    class Recording(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            seen[key] = value
            super().add_session_config_entry(key, value)

    model = emit_model(graph, tiny_weights(graph), tmp_path)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Recording)
    choice = parse_device("ort-cpu:session.set_denormal_as_zero=1")
    providers.create_session(model, choice.provider)
    assert seen["session.set_denormal_as_zero"] == "1"


def test_a_provider_that_does_not_load_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime logs a missing CUDA library and goes on without the provider; we do not."""
    graph = tiny_graph()
    model = emit_model(graph, tiny_weights(graph), tmp_path)
    here(monkeypatch, "CUDAExecutionProvider")

    class QuietlyWithout(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, providers: Any, **more: Any) -> None:
            super().__init__(*args, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", QuietlyWithout)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider did not load") as caught:
        providers.create_session(model, DEVICES["cuda"])
    assert caught.value.code == "provider-load"


def test_a_provider_that_raises_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no model")
    with pytest.raises(DeviceError, match="cannot load") as caught:
        providers.create_session(model, DEVICES["ort-cpu"])
    assert caught.value.code == "provider-load"


def test_nodes_left_to_the_cpu_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tiny_graph()
    session = ort_session(graph, tiny_weights(graph), tmp_path).model.runtime
    with pytest.raises(DeviceError, match="GroupQueryAttention 'GroupQueryAttention") as caught:
        providers.refuse_cpu_nodes(session, DEVICES["openvino"])
    assert caught.value.code == "cpu-nodes"
    assert "--allow-cpu-nodes" in caught.value.hint
    monkeypatch.setattr(
        providers, "placement", lambda _: [Placement("OpenVINOExecutionProvider", "Add", "a")]
    )
    providers.refuse_cpu_nodes(session, DEVICES["openvino"])


def test_placement_of_every_node(bundle: Path) -> None:
    export(bundle)
    with Bundle.open(bundle) as opened:
        placed = place(opened, "ort-cpu")
    assert {p.provider for p in placed} == {providers.CPU}
    assert {"GroupQueryAttention", "MatMulNBits"} <= {p.op for p in placed}


def test_qnn_refuses_weights_that_it_would_get_wrong(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(bundle, standard=True, rows=8, capacity=64)
    here(monkeypatch, "QNNExecutionProvider")
    monkeypatch.setattr(providers, "_has_plugin", lambda _: False)
    for device in ("qnn", "qnn:allow-cpu-nodes"):
        with Bundle.open(bundle) as opened, pytest.raises(DeviceError, match="int") as caught:
            open_session(opened, SessionOptions(device=device))
        assert caught.value.code == "device-weights"
        assert "--quant f16" in caught.value.hint


class Plugin:
    """onnxruntime with the package of a plugin provider, which may find a device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
        self.registered: list[str] = []
        self.devices = devices
        monkeypatch.setattr(providers, "_has_plugin", lambda p: bool(p.plugin))
        module = SimpleNamespace(get_library_path=lambda: "/lib/webgpu.so")
        monkeypatch.setattr("importlib.import_module", lambda _: module)
        for name in ("get_available_providers", "get_ep_devices"):
            monkeypatch.setattr(onnxruntime, name, getattr(self, name))
        register = "register_execution_provider_library"
        monkeypatch.setattr(onnxruntime, register, lambda name, _: self.registered.append(name))

    def get_available_providers(self) -> list[str]:
        return [*self.registered, providers.CPU]

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.registered * self.devices]


def test_a_plugin_provider_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Plugin(monkeypatch, devices=1)
    for _ in range(2):
        assert find_provider("webgpu").name == "WebGpuExecutionProvider"
    assert plugin.registered == ["WebGpuExecutionProvider"]


def test_a_plugin_without_a_device_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although onnxruntime counts it among its available providers once it is registered."""
    Plugin(monkeypatch, devices=0)
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            find_provider("webgpu")
        assert "is installed but finds no device" in caught.value.hint


def test_auto_is_cuda_only_where_it_would_work(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, "CUDAExecutionProvider")
    with Bundle.open(bundle) as opened:
        assert auto_device(opened) == "cpu"
    export(bundle, precision="f16")
    with Bundle.open(bundle) as opened:
        assert auto_device(opened) == "cuda"
        here(monkeypatch)
        assert auto_device(opened) == "cpu"


def test_cuda_takes_float16_only(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GroupQueryAttention has no float32 kernel: better to say so than to name nodes later."""
    export(bundle)
    here(monkeypatch, "CUDAExecutionProvider")
    with Bundle.open(bundle) as opened:
        assert auto_device(opened) == "cpu"
        with pytest.raises(BundleError, match=r"found \['model.onnx'\]") as caught:
            open_session(opened, SessionOptions(device="cuda"))
    assert caught.value.hint.endswith("--precision f16")


def test_the_fitting_variant_is_chosen(bundle: Path) -> None:
    with Bundle.open(bundle) as opened, pytest.raises(BundleError) as caught:
        open_session(opened, SessionOptions(device="ort-cpu"))
    assert caught.value.code == "onnx-missing"
    assert caught.value.hint.endswith("--precision f32")
    export(bundle, standard=True)
    export(bundle, precision="f16")
    with Bundle.open(bundle) as opened:
        assert len(emitted(opened)) == 2
        assert open_ort(opened, SessionOptions("ort-cpu")).variant.half
    export(bundle)
    with Bundle.open(bundle) as opened:
        session = open_session(opened, SessionOptions(device="ort-cpu", ctx_size=50, threads=1))
        assert session.context == 50
        assert session.device == "ort-cpu"
        assert session.variant.suffix == ""  # type: ignore[attr-defined]
