"""A folder in which an agent may work: its files, and commands with limits.

A path is walked from the folder's own descriptor, one name at a time, and no link is followed on the way
(`O_NOFOLLOW`), so neither `..`, an absolute path nor a symbolic link leads out of it, also when one is put
there while we look. A file is replaced as a whole or not at all.

A command gets a time limit, a limit on what it prints, and an environment without keys
(`sandbox_command.py`). It runs with the rights of the worker: the folder fences in honest mistakes, not
hostile code. For that, give the worker a container or an account of its own.

Writers and commands take turns by a lock on the folder, which a command of a dead worker holds until it is dead too.
"""

import asyncio
import errno
import fcntl
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pydantic_settings import BaseSettings, SettingsConfigDict

from graphs.tools.sandbox_command import execute

MAX_FILE_BYTES = 256 * 1024
MAX_LISTED = 200
MAX_DEPTH = 20
"""Names in a path. Programs that walk folders by recursion could not even delete a deep one."""
LOCK_SECONDS = 60.0
"""Longest wait for another writer or command of the same folder."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC
LINK = (errno.ELOOP, errno.EMLINK)


class SandboxSettings(BaseSettings):
    """Environment: CODING_SANDBOX, CODING_COMMAND_SECONDS. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    coding_sandbox: Path = Path(".perdure") / "sandbox"
    """Folder of the sandboxes. Workers on several machines must share it."""

    coding_command_seconds: float = 20.0
    """Longest time that a command may take."""


class Refused(Exception):
    """What was asked for is not allowed or not possible here; the text says why, for the model to read."""


class Sandbox:
    """The folder of one session, made when it is first used."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise ValueError(f"A sandbox is named by letters, digits, - and _, not {name!r}")
        self.path = SandboxSettings().coding_sandbox.absolute() / name

    def read(self, path: str) -> str:
        """A text file. Raises Refused."""
        flags = FILE | os.O_RDONLY | os.O_NONBLOCK  # a named pipe would be waited for
        with (
            self._parent(path) as (folder, name),
            _refusing(path),
            open(os.open(name, flags, dir_fd=folder), "rb") as file,
        ):
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(f"{path} is not a file")
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise Refused(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        return data.decode(errors="replace")

    async def write(self, path: str, content: str) -> int:
        """Create or replace a file, and the folders that it stands in; its size in bytes. Raises Refused."""
        data = content.encode(errors="replace")
        if len(data) > MAX_FILE_BYTES:
            raise Refused(f"{path}: {len(data)} bytes are more than {MAX_FILE_BYTES}")
        async with self._turn():
            replacing = asyncio.ensure_future(asyncio.to_thread(self._replace, path, data))
            try:
                await asyncio.shield(replacing)
            except asyncio.CancelledError:
                await asyncio.wait({replacing})  # the lock is kept until the file is whole
                raise
        return len(data)

    def _replace(self, path: str, data: bytes) -> None:
        with self._parent(path, make=True) as (folder, name), _refusing(path):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise Refused(f"{path} is not a file")
            part = f".{uuid4().hex}.part"
            try:
                new = os.open(part, FILE | os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
                with open(new, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(new)
                # A link that was put there meanwhile is replaced, not followed.
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:  # whatever stops it, and it goes on to do so: half a file must not stay
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)
                raise

    def files(self) -> list[str]:
        """The files, sorted, without hidden ones and without what links lead to; the first MAX_LISTED."""
        found: list[str] = []
        self._make()
        with self._root() as root:
            for folder, folders, names, _ in os.fwalk(".", dir_fd=root, follow_symlinks=False):
                folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
                found += [os.path.normpath(f"{folder}/{name}") for name in names if not name.startswith(".")]
                if len(found) > MAX_LISTED:
                    break
        return sorted(found)[:MAX_LISTED]

    async def run(self, command: str, *, seconds: float | None = None) -> str:
        """What a shell command prints, and how it ended. When the caller is cancelled, the command is killed."""
        limit = SandboxSettings().coding_command_seconds if seconds is None else seconds
        async with self._turn() as lock:
            return await execute(command, folder=self.path, seconds=limit, lock=lock)

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            exc.add_note(f"No sandbox can be made in {self.path.parent}; CODING_SANDBOX names another folder")
            raise

    @contextmanager
    def _root(self) -> Iterator[int]:
        root = os.open(self.path, FOLDER)
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder of a file, and the file's name in it. Raises Refused for a way that leads out."""
        names = path.removeprefix("./").split("/")
        if not path.isprintable() or len(names) > MAX_DEPTH or any(name in ("", ".", "..") for name in names):
            raise Refused(f"{path!r} is no path inside of the sandbox: give one like src/main.py, without . and ..")
        self._make()
        with ExitStack() as opened:
            folder = opened.enter_context(self._root())
            with _refusing(path):
                for name in names[:-1]:
                    if make:
                        with suppress(FileExistsError):
                            os.mkdir(name, 0o755, dir_fd=folder)
                    folder = os.open(name, FOLDER, dir_fd=folder)
                    opened.callback(os.close, folder)
            yield folder, names[-1]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[int]:
        """Wait until nobody else writes or executes here; gives the lock, which ends with its last descriptor."""
        await asyncio.to_thread(self._make)
        with self._root() as lock:
            try:
                async with asyncio.timeout(LOCK_SECONDS):
                    while not _locked(lock):  # noqa: ASYNC110 - the holder may be another process
                        await asyncio.sleep(0.02)
            except TimeoutError:
                raise Refused(f"The sandbox was in use for {LOCK_SECONDS:g} s; try again later") from None
            yield lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """What the file system says about a path, as Refused."""
    try:
        yield
    except OSError as exc:
        reason = "leads over a link" if exc.errno in LINK else (exc.strerror or str(exc)).lower()
        raise Refused(f"{path}: {reason}") from exc
