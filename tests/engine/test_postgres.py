"""The embedded PostgreSQL: shared, stopped by the last user, and no permission of anyone's changed."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from perdure.engine import postgres
from perdure.engine.postgres import EmbeddedPostgresError, embedded, location

OWNER = """
import os, signal, sys, time
from pathlib import Path
import psycopg
import encodings.idna
from perdure.engine import postgres

def leave(number, frame):
    raise SystemExit(0)

signal.signal(signal.SIGTERM, leave)
folder, root_dir, uid = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if root_dir:
    postgres._ROOT_DIR = Path(root_dir)
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
with postgres.embedded(folder) as dsn:
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    print("dsn", dsn, flush=True)
    time.sleep(120)
"""

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what happens under root")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that PostgreSQL's account can reach under root, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="perdure-pg-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def owner() -> Iterator[Start]:
    """Start another process that uses the server of a directory, and wait until it can."""
    started: list[subprocess.Popen[str]] = []

    def start(
        data: Path, *, root_dir: Path | str = "", uid: int = 0, path: Path | None = None, wait: bool = True
    ) -> "subprocess.Popen[str]":
        env = {**os.environ, "PYTHONPATH": str(path)} if path else None
        command = [sys.executable, "-c", OWNER, str(data), str(root_dir), str(uid)]
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        started.append(popen)
        if wait:
            ready(popen)
        return popen

    yield start
    for popen in started:
        if popen.poll() is None:
            popen.terminate()
            popen.wait(60)
        assert popen.stdout
        popen.stdout.close()


def ready(popen: "subprocess.Popen[str]") -> str:
    assert popen.stdout
    line = popen.stdout.readline()
    assert line.startswith("dsn "), f"the owner ended with {popen.wait(10)}"
    return line.split()[1]


def servers(data: Path) -> list[int]:
    """Process ids of the PostgreSQL servers that run on the cluster of `data`.

    A child that has just been forked looks as its server does, until it has given itself a title.
    """
    cluster = str(location(data) / "postgres")
    found: dict[int, int] = {}
    for process in psutil.process_iter():
        try:
            if cluster in process.cmdline() and "postgres" in process.name():
                found[process.pid] = process.ppid()
        except psutil.Error:
            continue
    return [pid for pid, parent in found.items() if parent not in found]


def test_starts_keeps_data_and_stops(folder: Path) -> None:
    with embedded(folder) as dsn, psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS x")
        shown = {name: conn.execute(f"SHOW {name}").fetchone() for name in ("fsync", "max_connections")}  # type: ignore[arg-type]
        assert shown == {"fsync": ("on",), "max_connections": ("200",)}
    assert servers(folder) == []
    with embedded(folder) as dsn, psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT x FROM kept").fetchone() == (1,)
    assert servers(folder) == []


def test_killed_owner_leaves_nothing_that_keeps_the_server_alive(folder: Path, owner: Start) -> None:
    first = owner(folder)
    first.kill()
    first.wait()
    assert len(servers(folder)) == 1  # a killed process cannot clean up
    with embedded(folder) as dsn:
        psycopg.connect(dsn).close()
        assert len(servers(folder)) == 1
    assert servers(folder) == []


def test_sigterm_of_the_owner_stops_the_server(folder: Path, owner: Start) -> None:
    first = owner(folder)
    first.terminate()
    assert first.wait(60) == 0
    assert servers(folder) == []


def test_two_started_at_once_share_one_server_and_the_last_one_stops_it(folder: Path, owner: Start) -> None:
    pair = [owner(folder, wait=False) for _ in range(2)]
    assert len({ready(popen) for popen in pair}) == 1
    assert len(servers(folder)) == 1
    pair[0].terminate()
    pair[0].wait(60)
    assert len(servers(folder)) == 1
    pair[1].terminate()
    pair[1].wait(60)
    assert servers(folder) == []


def test_two_users_in_one_process_share_one_server(folder: Path) -> None:
    with embedded(folder) as first:
        with embedded(folder) as second:
            assert first == second
        psycopg.connect(first).close()
    assert servers(folder) == []


def test_pid_file_with_a_pid_of_another_program_does_not_hinder_the_start(folder: Path) -> None:
    with embedded(folder):
        pid_file = location(folder) / "postgres" / "postmaster.pid"
        left_over = pid_file.read_text().split("\n", 1)[1]
    pid_file.write_text(f"{os.getpid()}\n{left_over}")
    with embedded(folder) as dsn:
        psycopg.connect(dsn).close()
    assert servers(folder) == []


def test_server_killed_with_its_owner_recovers(folder: Path, owner: Start) -> None:
    first = owner(folder)
    first.kill()
    first.wait()
    os.kill(servers(folder)[0], signal.SIGKILL)
    with embedded(folder) as dsn:
        psycopg.connect(dsn).close()
    assert servers(folder) == []


def test_next_user_waits_for_a_server_that_is_stopping(folder: Path, owner: Start) -> None:
    first = owner(folder)
    first.kill()
    first.wait()
    os.kill(servers(folder)[0], signal.SIGINT)
    with embedded(folder) as dsn:
        time.sleep(0.3)
        psycopg.connect(dsn).close()
    assert servers(folder) == []


def test_half_made_cluster_is_made_again(folder: Path) -> None:
    home = location(folder)
    (home / "postgres.new").mkdir(parents=True)
    (home / "postgres.new" / "rubbish").write_text("left by a kill in the middle of initdb")
    with embedded(folder) as dsn:
        psycopg.connect(dsn).close()


def test_path_that_is_long_and_full_of_shell_characters(folder: Path) -> None:
    data = folder / 'it\'s "$HOME" `x` %20' / ("x" * 100)
    with embedded(data) as dsn:
        psycopg.connect(dsn).close()
    assert servers(data) == []


def test_cluster_of_another_version_is_refused_with_a_way_out(folder: Path) -> None:
    with embedded(folder):
        pass
    version = location(folder) / "postgres" / "PG_VERSION"
    version.write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL 16.*PERDURE_DATA_DIR"), embedded(folder):
        pass


def test_server_that_cannot_start_says_why(folder: Path) -> None:
    with embedded(folder):
        pass
    with (location(folder) / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"), embedded(folder):
        pass


def test_exception_inside_the_block_stops_the_server(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded(folder):
        raise ZeroDivisionError
    assert servers(folder) == []


def test_users_in_threads_take_turns(folder: Path) -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(3):
                with embedded(folder) as dsn:
                    psycopg.connect(dsn).close()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert servers(folder) == []


def modes(path: Path) -> dict[Path, int]:
    return {step: stat.S_IMODE(step.stat().st_mode) for step in (path, *path.parents)}


@as_root
def test_under_root_a_closed_directory_stays_closed_and_the_data_goes_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_ROOT_DIR", folder / "var")
    project = folder / "home" / "project"
    project.mkdir(parents=True)
    (folder / "home").chmod(0o700)
    before = modes(project)
    with embedded(project / ".perdure") as dsn:
        psycopg.connect(dsn).close()
        assert location(project / ".perdure").parent == folder / "var"
        cluster = location(project / ".perdure") / "postgres"
        assert stat.S_IMODE(cluster.stat().st_mode) == 0o700
        assert cluster.stat().st_uid != 0
    assert modes(project) == before
    assert list(project.iterdir()) == []


@as_root
def test_under_root_programs_in_a_closed_directory_are_copied_not_opened(
    folder: Path, owner: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = postgres._programs(None)
    wheel = programs.parent.parent
    closed = folder / "root" / "site-packages"
    closed.mkdir(parents=True)
    (folder / "root").chmod(0o700)
    shutil.copytree(programs.parent, closed / wheel.name / programs.parent.name, symlinks=True)
    shutil.copy(wheel / "__init__.py", closed / wheel.name)
    libraries = wheel.with_name(f"{wheel.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    before = modes(closed)
    first = owner(folder / "data", root_dir=folder / "var", path=closed)
    executable = Path(psutil.Process(servers(folder / "data")[0]).exe())
    assert executable.is_relative_to(folder / "var")
    first.terminate()
    assert first.wait(60) == 0
    assert modes(closed) == before
    assert servers(folder / "data") == []


@as_root
def test_ordinary_user_has_server_and_data_of_his_own(folder: Path, owner: Start) -> None:
    data = folder / "mine"
    data.mkdir(mode=0o700)
    os.chown(data, NOBODY, NOBODY)
    first = owner(data, uid=NOBODY)
    assert [psutil.Process(pid).uids().real for pid in servers_below(data)] == [NOBODY]
    assert (data / "postgres").stat().st_uid == NOBODY
    first.kill()
    first.wait()
    second = owner(data, uid=NOBODY)
    second.terminate()
    assert second.wait(60) == 0
    assert servers_below(data) == []


def servers_below(data: Path) -> list[int]:
    cluster = str(data.resolve() / "postgres")
    all_of_them = (p for p in psutil.process_iter(["cmdline", "name", "ppid"]) if p.info["name"] == "postgres")
    found = {p.pid: p.info["ppid"] for p in all_of_them if cluster in (p.info["cmdline"] or [])}
    return [pid for pid, parent in found.items() if parent not in found]


@as_root
def test_ordinary_user_is_told_that_a_cluster_belongs_to_someone_else(folder: Path, owner: Start) -> None:
    with embedded(folder):
        pass
    script = OWNER.replace(
        "with postgres.embedded",
        "try:\n  postgres.embedded(folder).__enter__()\n"
        "except postgres.EmbeddedPostgresError as exc:\n  print(exc)\n  raise SystemExit(0)\n"
        "with postgres.embedded",
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), "", str(NOBODY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "belongs to user id" in done.stdout, done.stderr
