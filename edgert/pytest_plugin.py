"""Budgets in an application's own tests, for pytest.

    @pytest.mark.edgert_budget(bundle="model.edge", device="jetson-orin-nano-8gb", predict=True,
                               p90_token_ms=40, peak_mb=900)
    def test_the_model_is_quick(edgert_budget):
        assert edgert_budget.outcome == "pass"

A test that is marked fails by itself where a limit is broken, and is skipped where some stay
undecided (`undecided="fail"` makes that a failure); asking for the fixture hands the report over
instead, a `budget.report.Report`, and the test decides. Several marks, on a test or its class,
are all judged; the fixture's report then holds the verdicts of all. Keywords besides limits are
those of `budget.run.Ask`, and `bundle`, whose default is `--edgert-bundle` or the `edgert_bundle`
ini line. `--edgert-report FILE` collects all verdicts of a run into one JSON object.

The entry point loads this module alone: nothing else of edgert is imported where no test asks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from .budget.report import Report
    from .budget.run import Ask

MARK = "edgert_budget"
ASKED = ("device", "predict", "threads", "limit_memory", "seconds", "kv_bits", "compute")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--edgert-bundle and --edgert-report."""
    group = parser.getgroup("edgert")
    group.addoption("--edgert-bundle", metavar="PATH", help="bundle that budgets are tested on")
    group.addoption("--edgert-report", metavar="FILE", help="write all verdicts here, as JSON")
    parser.addini("edgert_bundle", "bundle that budgets are tested on", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark, and what answers it."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(bundle, device, predict, undecided, **limits): the test fails where a bundle "
        "breaks its budget of times and memory; see edgert.pytest_plugin",
    )
    config.pluginmanager.register(_plugin(config, _target(config)), "edgert-budgets")


def _target(config: pytest.Config) -> Path | None:
    """Where to write all verdicts; None: nowhere. pytest.UsageError for what cannot be written."""
    path = config.getoption("--edgert-report")
    if path is None or config.getoption("collectonly") or hasattr(config, "workerinput"):
        return None
    import pytest

    from .errors import EdgertError
    from .storage.aside import check_target

    try:
        check_target(target := Path(os.path.abspath(path)))
    except EdgertError as error:
        raise pytest.UsageError(f"--edgert-report: {error}") from None
    return target


class _Reports:
    """The reports of a run's budgets: of this process, and in the one that pytest-xdist's workers
    report to, of theirs. target: file for them."""

    def __init__(self, config: pytest.Config, target: Path | None) -> None:
        self.config, self.target = config, target
        self.reports: list[dict[str, Any]] = []
        self.unwritten = ""

    def of(self, item: Any) -> list[Report]:
        """Run the budgets of a test's marks, the closest first. The test fails for a mark that says
        nothing usable."""
        from .errors import EdgertError

        found = []
        for mark in item.iter_markers(MARK):
            try:
                report = _run(mark.args, mark.kwargs, _bundle(self.config, mark.kwargs))
            except EdgertError as error:
                import pytest

                pytest.fail(f"{MARK}: {error}", pytrace=False)
            self.reports.append({"test": item.nodeid, **report.to_dict()})
            found.append(report)
        return found

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes what was found. The run does not end well where it cannot."""
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[MARK] = self.reports
        elif self.target is not None:
            self.unwritten = _written(self.target, self.reports)
            if self.unwritten:
                import pytest

                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A line a budget, where there was one."""
        if self.reports:
            terminalreporter.section("edgert budgets")
        for report in self.reports:
            terminalreporter.write_line(f"{report['outcome']:9} {report['test']}")
        if self.unwritten:
            terminalreporter.write_line(self.unwritten, red=True)


def _plugin(config: pytest.Config, target: Path | None) -> Any:
    """The plugin proper: a fixture needs pytest itself, which the runtime does not."""
    import pytest

    class Budgets(_Reports):
        """Judges marked tests, each once."""

        @pytest.fixture(name=MARK)
        def fixture(self, request: pytest.FixtureRequest) -> Report:
            """The report of the test's budget, with the verdicts of all its marks."""
            found = self.of(request.node)
            if not found:
                raise pytest.UsageError(
                    f"{request.node.name} asks for {MARK} and is not marked with it"
                )
            return _merged(found)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_call(self, item: pytest.Item) -> None:
            """Judges marked tests that do not ask for the report themselves."""
            if MARK in getattr(item, "fixturenames", ()):
                return
            strict = [m.kwargs.get("undecided") == "fail" for m in item.iter_markers(MARK)]
            _judge(list(zip(self.of(item), strict, strict=True)))

        @pytest.hookimpl(optionalhook=True)
        def pytest_testnodedown(self, node: Any) -> None:
            """Takes over the reports of a worker that is done."""
            self.reports += getattr(node, "workeroutput", {}).get(MARK, [])

    return Budgets(config, target)


def _merged(found: list[Report]) -> Report:
    """The first report with the verdicts of all."""
    from msgspec.structs import replace

    verdicts = tuple(verdict for report in found for verdict in report.verdicts)
    return replace(found[0], verdicts=verdicts, seconds=sum(report.seconds for report in found))


def _judge(found: list[tuple[Report, bool]]) -> None:
    """Fails or skips the running test by its reports, each with whether it has to decide."""
    import pytest

    left = [(report, strict) for report, strict in found if report.outcome != "pass"]
    if not left:
        return
    from .budget.report import lines

    text = "\n".join(line for report, _ in left for line in lines(report))
    if any(report.outcome == "fail" or strict for report, strict in left):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _bundle(config: pytest.Config, asked: dict[str, Any]) -> str:
    from .errors import RequestError

    found = asked.get("bundle") or config.getoption("--edgert-bundle")
    found = found or config.getini("edgert_bundle")
    if not found:
        raise RequestError(
            "no bundle is named", code="budget-bundle",
            hint="give bundle= to the mark, --edgert-bundle, or edgert_bundle in pytest.ini",
        )  # fmt: skip
    if not isinstance(found, str | os.PathLike):
        raise RequestError(
            f"bundle is {found!r}, expected the path of one", code="parameter-type", field="bundle"
        )
    return os.fspath(found)


def _run(args: tuple[Any, ...], asked: dict[str, Any], bundle: str) -> Report:
    from .budget.limits import budget_of
    from .budget.run import run
    from .errors import RequestError

    undecided = asked.get("undecided", "skip")
    if args or undecided not in ("skip", "fail"):
        raise RequestError(
            f"the mark says {args or undecided!r}, expected keywords, undecided='skip' or 'fail'",
            code="budget-mark",
            hint="as in @pytest.mark.edgert_budget(bundle='model.edge', p90_token_ms=40)",
        )
    ask = _ask({name: asked[name] for name in ASKED if name in asked})
    limits = {k: v for k, v in asked.items() if k not in (*ASKED, "bundle", "undecided")}
    return run(Path(bundle), budget_of(limits, "the mark"), ask)


def _ask(known: dict[str, Any]) -> Ask:
    """A mark's keywords besides its limits. RequestError for values of another type."""
    import msgspec

    from .budget.run import ASK
    from .errors import RequestError
    from .system_memory import bytes_of

    device, memory = known.get("device"), known.get("limit_memory", 0)
    if isinstance(device, os.PathLike):
        known["device"] = os.fspath(device)
    try:
        if isinstance(memory, str):
            known["limit_memory"] = bytes_of(memory)
        return ASK.convert(known)
    except msgspec.ValidationError as error:
        said = str(error)
    except (ValueError, OverflowError):
        said = f"limit_memory is {str(memory)[:40]!r}, expected bytes such as '512M' or '2G'"
    raise RequestError(
        f"the mark: {said}", code="parameter-type",
        hint="as in @pytest.mark.edgert_budget(bundle='model.edge', p90_token_ms=40)",
    )  # fmt: skip


def _written(target: Path, reports: list[dict[str, Any]]) -> str:
    """Writes all verdicts; why they could not be, or ""."""
    import json

    from .errors import EdgertError
    from .storage.aside import replace_file

    text = json.dumps({"schema": 1, "reports": reports}, indent=1)
    try:
        replace_file(target, f"{text}\n".encode())
    except EdgertError as error:
        return f"--edgert-report: {error}"
    return ""
