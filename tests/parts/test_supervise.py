from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from parts import servers
from parts.processes import wait
from polaris.errors import Conflict, Unavailable
from polaris_cli.up import process as module
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import Ending, Process, calling
from polaris_cli.up.supervise import State, Supervisor, pause

SLEEP = ("sleep", "600")
DEAF = ("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done")


class Reports(list[tuple[str, State]]):
    """What was reported, in order; sends us SIGTERM when one has come so many times."""

    def __init__(self, stop_at: tuple[str, State] = ("nothing", "ready"), times: int = 1) -> None:
        super().__init__()
        self._stop_at = stop_at
        self._times = times

    def __call__(self, name: str, state: State, _: str) -> None:
        self.append((name, state))
        if (name, state) == self._stop_at and self.count(self._stop_at) == self._times:
            signal.raise_signal(signal.SIGTERM)


def part(folder: Path, name: str, command: Sequence[str] = SLEEP) -> Process:
    return Process(name=name, folder=folder, command=lambda: command)


def says(part: Process, word: str) -> Callable[[], bool]:
    return lambda: part.log_file.exists() and word in part.log_file.read_text()


def supervise_for_ever(folder: str) -> None:
    """What a test runs in a process of its own, to kill it; prints the pids that it made."""
    root = Path(folder)
    with Supervisor(root, lambda *_: None) as supervisor:
        database = LocalPostgres(root / "postgres", fsync=False)
        vault = LocalOpenBao(root / "openbao")
        plain = part(root, "plain")
        for each in (database, vault, plain):
            supervisor.start(each)
        children = [child.pid for child in psutil.Process().children(recursive=True)]
        with suppress(KeyboardInterrupt):  # it may come before we watch
            print(json.dumps(children), flush=True)
            supervisor.watch()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with servers.open_folder() as made:
        yield made


@pytest.fixture
def supervised(open_folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that supervises all parts, and all that it started."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        calling(supervise_for_ever, str(open_folder)), stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, [psutil.Process(pid) for pid in json.loads(process.stdout.readline())]
        finally:
            process.kill()


def test_parts_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    reports = Reports()
    with Supervisor(tmp_path, reports) as supervisor:
        for name in ("first", "second"):
            supervisor.start(part(tmp_path, name))
    assert reports == [
        ("first", "starting"),
        ("first", "ready"),
        ("second", "starting"),
        ("second", "ready"),
        ("second", "stopping"),
        ("second", "stopped"),
        ("first", "stopping"),
        ("first", "stopped"),
    ]


def test_all_parts_stop_though_nobody_can_be_told(tmp_path: Path) -> None:
    parts = [part(tmp_path, "first"), part(tmp_path, "second")]

    def to_a_terminal_that_goes_away(_: str, state: State, __: str) -> None:
        if state == "stopping":
            raise BrokenPipeError

    supervisor = Supervisor(tmp_path, to_a_terminal_that_goes_away)
    supervisor.__enter__()
    for each in parts:
        supervisor.start(each)
    with pytest.raises(BrokenPipeError):
        supervisor.__exit__(None, None, None)
    assert [each.pid for each in parts] == [None, None]


def test_a_part_is_ready_when_it_says_so_and_its_output_is_in_its_log(tmp_path: Path) -> None:
    talking = part(tmp_path, "talking", ["sh", "-c", "echo listening; sleep 600"])
    talking.ready = says(talking, "listening")
    with Supervisor(tmp_path, Reports()) as supervisor:
        supervisor.start(talking)
        assert talking.log_file.read_text() == "listening\n"
    assert talking.pid is None


def test_what_a_part_said_that_does_not_come_up_is_raised(tmp_path: Path) -> None:
    broken = part(tmp_path, "broken", ["sh", "-c", "echo Error: no such thing; echo bye; exit 3"])
    broken.ready = lambda: False
    first, reports = part(tmp_path, "first"), Reports()
    with Supervisor(tmp_path, reports) as supervisor:
        supervisor.start(first)
        with pytest.raises(Unavailable, match=r"broken did not start: Error: no such.*broken\.log"):
            supervisor.start(broken)
    assert ("broken", "failed") in reports
    assert first.pid is None


def test_a_part_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    slow = part(tmp_path, "slow")
    slow.ready, slow.start_seconds = lambda: False, 0.1
    with pytest.raises(Unavailable, match="slow was not ready after 0 s: it said nothing"):
        slow.start()
    assert slow.pid is None


def test_a_part_that_dies_is_started_again_until_it_stays(tmp_path: Path) -> None:
    script = "echo run >> $0; test $(wc -l < $0) -ge 3 && echo steady && exec sleep 600; exit 7"
    frail = part(tmp_path, "frail", ["sh", "-c", script, str(tmp_path / "runs")])
    reports = Reports(("frail", "ready"), times=2)
    with Supervisor(tmp_path, reports) as supervisor:
        supervisor.start(frail)  # ready at once: it asks for nothing
        frail.ready = says(frail, "steady")
        supervisor.watch()
    assert [state for _, state in reports] == [
        *("starting", "ready"),
        *("died", "restarting") * 2,
        *("ready", "stopping", "stopped"),
    ]


def test_a_restart_that_fails_is_tried_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    gone, steady = part(tmp_path, "gone", ["true"]), part(tmp_path, "steady")
    reports = Reports(("gone", "died"), times=2)
    with Supervisor(tmp_path, reports) as supervisor:
        supervisor.start(steady)
        supervisor.start(gone)
        gone.command = lambda: ["/no/such/program"]
        supervisor.watch()
        assert steady.poll() is None
    assert reports.count(("gone", "restarting")) == 1


@pytest.mark.parametrize(("deaths", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (100_000, 30.0)])
def test_the_pause_before_a_restart_doubles_up_to_half_a_minute(deaths: int, seconds: float) -> None:
    assert pause(deaths) == seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_part_starts_ends_it_and_is_raised(tmp_path: Path, number: signal.Signals) -> None:
    first, second = part(tmp_path, "first"), part(tmp_path, "second")

    def ready() -> bool:
        signal.raise_signal(number)
        return False

    second.ready = ready
    with Supervisor(tmp_path, Reports()) as supervisor:
        supervisor.start(first)
        with pytest.raises(KeyboardInterrupt):
            supervisor.start(second)
        assert second.pid is None
    assert first.pid is None


def test_afterwards_signals_mean_what_they_meant_before(tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Supervisor(tmp_path, Reports()):
        pass
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_part_that_is_deaf_to_the_first_signal_gets_the_next(tmp_path: Path) -> None:
    deaf = part(tmp_path, "deaf", DEAF)
    deaf.ready = says(deaf, "deaf")
    deaf.ending = Ending(((signal.SIGTERM, 0.1), (signal.SIGKILL, 60.0)))
    deaf.start()
    deaf.stop()
    assert deaf.poll() == -signal.SIGKILL


def test_a_second_supervisor_of_the_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with (
        Supervisor(tmp_path, Reports()),
        pytest.raises(Conflict, match=rf"polaris up already runs on .* \(process {os.getpid()}\)"),
        Supervisor(tmp_path, Reports()),
    ):
        pass
    with Supervisor(tmp_path, Reports()):
        pass


def test_what_a_killed_owner_left_running_is_ended_before_the_next_start(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP) as leftover:  # as where no kernel ends children with their parents
        try:
            created = psutil.Process(leftover.pid).create_time()
            (tmp_path / "plain.pid").write_text(f"{leftover.pid} {created}\n")
            plain = part(tmp_path, "plain")
            plain.start()
            plain.stop()
            assert leftover.poll() is not None
        finally:
            leftover.kill()


def test_a_pid_file_of_long_ago_ends_nobody(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP) as other:
        try:
            (tmp_path / "plain.pid").write_text(f"{other.pid} 1.0\n")
            plain = part(tmp_path, "plain")
            plain.start()
            plain.stop()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_long_log_is_set_aside_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_LIMIT", 10)
    plain = part(tmp_path, "plain")
    plain.log_file.write_text("more than ten bytes")
    plain.start()
    plain.stop()
    assert plain.log_file.read_text() == ""
    assert plain.log_file.with_suffix(".log.1").read_text() == "more than ten bytes"


def test_a_function_runs_in_a_python_of_its_own() -> None:
    done = subprocess.run(calling(json.dumps, "text"), check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.postgres
def test_a_part_killed_under_a_supervisor_comes_back_with_its_data(open_folder: Path) -> None:
    database = LocalPostgres(open_folder / "postgres", fsync=False)
    reports = Reports(("postgres", "ready"), times=2)
    with Supervisor(open_folder, reports) as supervisor:
        supervisor.start(database)
        servers.run(database.superuser_dsn, "CREATE TABLE kept ()")
        psutil.Process(database.pid).kill()
        supervisor.watch()
        assert servers.run(database.superuser_dsn, "TABLE kept") == []


@pytest.mark.postgres
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_supervisor_ends_however_that_comes_nothing_is_left(
    supervised: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    process, children = supervised
    assert len(children) > 3
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 0)
    wait(children)
