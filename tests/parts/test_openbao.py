from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from parts import ordinary, servers, vault
from parts.processes import crash
from polaris.errors import Conflict, Prerequisite
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.process import Ending

# An orderly end takes a second or two, and is tested below.
AT_ONCE = Ending(((signal.SIGKILL, 60.0),))

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.open_folder() as made:
        yield made / "openbao"


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    with servers.open_folder() as made:
        server = LocalOpenBao(made / "openbao")
        try:
            server.start()
        finally:
            server.stop()
        yield server.folder


@pytest.fixture
def server(folder: Path, initialised: Path) -> Iterator[LocalOpenBao]:
    shutil.copytree(initialised, folder)  # a first start takes two seconds
    made = LocalOpenBao(folder, ending=AT_ONCE)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def remember(server: LocalOpenBao, name: str) -> None:
    with vault.client(server.address, server.root_token) as client:
        client.sys.create_or_update_policy(name, 'path "secret/*" { capabilities = ["read"] }')


def policies(server: LocalOpenBao) -> set[str]:
    with vault.client(server.address, server.root_token) as client:
        return set(vault.read(client, "sys/policy")["policies"])


def test_it_starts_unsealed_and_its_token_may_do_everything(openbao: LocalOpenBao) -> None:
    assert openbao.ready()
    assert "root" in policies(openbao)


def test_it_listens_on_the_loopback_only(openbao: LocalOpenBao) -> None:
    sockets = psutil.Process(openbao.pid).net_connections()
    assert {c.laddr[0] for c in sockets if c.status == "LISTEN"} == {"127.0.0.1"}


def test_a_second_start_finds_its_data_its_token_and_its_port(server: LocalOpenBao) -> None:
    remember(server, "kept")
    before = (server.address, server.root_token)
    server.stop()
    server.start()
    assert (server.address, server.root_token) == before
    assert "kept" in policies(server)


def test_killed_it_comes_back_unsealed_with_all_that_it_acknowledged(server: LocalOpenBao) -> None:
    remember(server, "acknowledged")
    crash(server)
    server.start()
    assert "acknowledged" in policies(server)


def test_told_to_stop_it_ends_in_order(initialised: Path, folder: Path) -> None:
    shutil.copytree(initialised, folder)
    server = LocalOpenBao(folder)
    server.start()
    server.stop()
    assert server.poll() == 0


def test_sealed_it_is_not_ready_until_it_is_unsealed(server: LocalOpenBao) -> None:
    remember(server, "kept")
    server.seal()
    assert not server.ready()
    server.unseal()
    assert server.ready()
    assert "kept" in policies(server)


def test_a_first_start_that_was_cut_short_begins_anew(server: LocalOpenBao) -> None:
    # As it is between the answer with the keys and their being written down.
    crash(server)
    (server.folder / "admin.json").unlink()
    (server.folder / "unfinished").touch()
    server.start()
    assert "root" in policies(server)


@pytest.mark.parametrize("name", ["admin.json", "unseal.key"])
def test_without_its_keys_it_says_so_and_touches_nothing(server: LocalOpenBao, name: str) -> None:
    remember(server, "kept")
    server.stop()
    away = server.folder.with_name("away")
    (server.folder / name).rename(away)
    with pytest.raises(Prerequisite, match=f"{name} is missing"):
        server.start()
    away.rename(server.folder / name)
    server.start()
    assert "kept" in policies(server)


def test_where_its_port_was_taken_it_remembers_another(server: LocalOpenBao) -> None:
    remember(server, "kept")
    before = server.port
    server.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", before))
        squatter.listen()
        server.start()
        assert server.port != before
        assert "kept" in policies(server)


def test_a_second_owner_of_the_folder_is_told_who_has_it(server: LocalOpenBao) -> None:
    with pytest.raises(Conflict, match=rf"{server.folder} \(process {os.getpid()}\)"):
        LocalOpenBao(server.folder).start()
    assert server.ready()


def test_its_files_are_for_the_owner_only(server: LocalOpenBao) -> None:
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    for name in ("admin.json", "unseal.key", "openbao.json", "openbao.log"):
        assert stat.S_IMODE((server.folder / name).stat().st_mode) == 0o600


if AS_ROOT and ordinary.python():

    def test_an_ordinary_user_runs_it_as_himself(folder: Path) -> None:
        shutil.chown(folder.parent, ordinary.USER)
        program = (
            "import sys, psutil; from pathlib import Path\n"
            "from polaris_cli.up.openbao import LocalOpenBao\n"
            "server = LocalOpenBao(Path(sys.argv[1])); server.start()\n"
            "process = psutil.Process(server.pid); process.kill(); process.wait(); server.start()\n"
            "print(psutil.Process(server.pid).username()); server.stop()"
        )
        done = ordinary.run([ordinary.python() or "", "-P", "-c", program, str(folder)])
        assert done.stdout == f"{ordinary.USER}\n", done.stderr
