"""Budgets in an application's own tests, for pytest.

    @pytest.mark.edgert_budget(bundle="model.edge", device="jetson-orin-nano-8gb", predict=True,
                               p90_token_ms=40, peak_mb=900)
    def test_the_model_is_quick(edgert_budget):
        assert edgert_budget.outcome == "pass"

A test that is marked fails by itself where a limit is broken, and is skipped where some stay
undecided (`undecided="fail"` makes that a failure); asking for the fixture hands the report over
instead, a `budget.report.Report`, and the test decides. Keywords besides limits are those of
`budget.run.Ask`, and `bundle`, whose default is `--edgert-bundle` or the `edgert_bundle` ini line.
`--edgert-report FILE` collects all verdicts of a run into one JSON object.

The entry point loads this module alone: nothing else of edgert is imported where no test asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from .budget.report import Report

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
    config.pluginmanager.register(_plugin(config), "edgert-budgets")


def _plugin(config: pytest.Config) -> Any:
    """The plugin proper: a fixture needs pytest itself, which the runtime does not."""
    import pytest

    class Budgets:
        """Runs marked tests' budgets, each once, and keeps their reports: of this process, and in
        the one that pytest-xdist's workers report to, of theirs."""

        def __init__(self) -> None:
            self.reports: list[dict[str, Any]] = []

        @pytest.fixture(name=MARK)
        def fixture(self, request: pytest.FixtureRequest) -> Report:
            """The report of the test's budget."""
            return self.report_of(request.node)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_call(self, item: pytest.Item) -> None:
            """Judges marked tests that do not ask for the report themselves."""
            mark = item.get_closest_marker(MARK)
            if mark is None or MARK in getattr(item, "fixturenames", ()):
                return
            _judge(self.report_of(item), mark.kwargs.get("undecided", "skip"))

        def report_of(self, item: Any) -> Report:
            """Run the budget of a test's mark. pytest.UsageError for a mark that says nothing
            usable."""
            from .errors import EdgertError

            mark = item.get_closest_marker(MARK)
            if mark is None:
                raise pytest.UsageError(f"{item.name} asks for {MARK} and is not marked with it")
            try:
                report = _run(mark.args, mark.kwargs, _bundle(config, mark.kwargs))
            except EdgertError as error:
                pytest.fail(f"{MARK}: {error}", pytrace=False)
            self.reports.append({"test": item.nodeid, **report.to_dict()})
            return report

        @pytest.hookimpl(optionalhook=True)
        def pytest_testnodedown(self, node: Any) -> None:
            """Takes over the reports of a worker that is done."""
            self.reports += getattr(node, "workeroutput", {}).get(MARK, [])

        def pytest_sessionfinish(self) -> None:
            """Writes what was collected."""
            path = config.getoption("--edgert-report")
            if hasattr(config, "workeroutput"):
                config.workeroutput[MARK] = self.reports
            elif path:
                _write(path, self.reports)

        def pytest_terminal_summary(self, terminalreporter: Any) -> None:
            """A line a budget, where there was one."""
            if self.reports:
                terminalreporter.section("edgert budgets")
            for report in self.reports:
                terminalreporter.write_line(f"{report['outcome']:9} {report['test']}")

    return Budgets()


def _judge(report: Report, undecided: str) -> None:
    """Fails or skips the running test by a report."""
    import pytest

    from .budget.report import lines

    if report.outcome == "pass":
        return
    text = "\n".join(lines(report))
    if report.outcome == "fail" or undecided == "fail":
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
    return str(found)


def _run(args: tuple[Any, ...], asked: dict[str, Any], bundle: str) -> Report:
    from pathlib import Path

    from .budget.limits import budget_of
    from .budget.run import Ask, run
    from .errors import RequestError

    undecided = asked.get("undecided", "skip")
    if args or undecided not in ("skip", "fail"):
        raise RequestError(
            f"the mark says {args or undecided!r}, expected keywords, undecided='skip' or 'fail'",
            code="budget-mark",
            hint="as in @pytest.mark.edgert_budget(bundle='model.edge', p90_token_ms=40)",
        )
    known = {name: asked[name] for name in ASKED if name in asked}
    limits = {k: v for k, v in asked.items() if k not in (*ASKED, "bundle", "undecided")}
    return run(Path(bundle), budget_of(limits, "the mark"), Ask(**known))


def _write(path: str, reports: list[dict[str, Any]]) -> None:
    import json
    from pathlib import Path

    text = json.dumps({"schema": 1, "reports": reports}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
