"""Cores a process may use: quotas of control groups, v1 and v2, in containers and out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert.session import cores

V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/system.slice/x.service\n"
V2 = "0::/user.slice/run.scope\n"


def machine(root: Path, groups: str, **files: str) -> Path:
    """A root whose process is in `groups`; files below sys/fs/cgroup by path."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups, encoding="utf-8")
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def v1(folder: str, quota: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        (V2, {}, float("inf")),
        (V2, {"cpu.max": "max 100000\n"}, float("inf")),
        (V2, {"cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"user.slice/run.scope/cpu.max": "50000 100000\n"}, 0.5),
        (V2, {"user.slice/cpu.max": "300000 100000\n", "cpu.max": "max 100000\n"}, 3.0),
        (V1, v1("cpu", 200_000), 2.0),
        (V1, v1("cpu,cpuacct", 200_000), 2.0),
        (V1, v1("cpu", -1), float("inf")),
        (V1, v1("cpu,cpuacct/docker/abc", 100_000) | v1("cpu,cpuacct", -1), 1.0),
        (V1, v1("cpu/docker", 400_000) | v1("cpu/docker/abc", 700_000), 4.0),
        (V1, v1("memory", 100_000), float("inf")),
        (V1, {"cpu/cpu.cfs_quota_us": "many", "cpu/cpu.cfs_period_us": "0"}, float("inf")),
        ("0::/../outside\n", {"../outside/cpu.max": "100000 100000"}, float("inf")),
        ("nonsense", {"cpu.max": "100000 100000"}, 1.0),
    ],
)  # fmt: skip
def test_quota(tmp_path: Path, groups: str, files: dict[str, str], cpus: float) -> None:
    assert cores.cpu_quota(machine(tmp_path, groups, **files)) == cpus


def test_without_control_groups(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path) == float("inf")


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (1.0, 1), (1.9, 1), (float("inf"), 0)])
def test_threads_follow_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, count: int
) -> None:
    everything = len(cores.performance_cores())
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert len(cores.performance_cores()) == (count or everything)
