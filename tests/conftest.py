"""What the tests of more than one part share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kube import build
from kube.cluster import Cluster
from parts import servers
from parts.fixtures import (  # noqa: F401
    any_postgres,
    fresh_database,
    openbao,
    postgres,
    postgres15,
    postgres16,
    vault_administrator,
    vector_postgres,
)


def pytest_report_header() -> list[str]:
    """Say what this machine can't test, and why."""
    return [reason for reason in (servers.why_not_15(),) if reason]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the API server before the first test that needs it: no test's timeout is for minutes."""
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if "cluster" in fixtures and not session.config.option.collectonly:
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            build.binaries()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a coroutine that hangs end its process: after a signal it would hang once more in its fixtures."""
    for item in items:
        if item.get_closest_marker("anyio") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(method="thread"))


class FailuresAtOnce:
    """Names what failed when it fails: a run of twenty minutes says why only at its end."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_line(
                f"FAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)", red=True
            )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Say failures at once, in the process that has a terminal."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(FailuresAtOnce(terminal))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real API server, shared by the whole session: use namespaces of your own."""
    with Cluster() as running:
        yield running
