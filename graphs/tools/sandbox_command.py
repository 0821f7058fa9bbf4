"""One shell command: with limits, without keys, and never longer than whoever has started it.

The command runs in a session of its own under a small guard, the same file as a program. The guard holds one end
of a pipe whose other end the worker holds: when the worker dies, however it dies, the pipe breaks, and the
guard kills the whole process group, itself included. The same happens at the time limit and when the command
ends and leaves something running.

`python sandbox_command.py SECONDS LIFELINE STATUS COMMAND` is the guard; it needs nothing but the standard library.
"""

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

OUTPUT_BYTES = 16_000
"""What is kept of the output; the rest is read and dropped, so the command does not notice."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file that a command may write."""

GRACE_SECONDS = 1.0
"""How long the guard may be late, and how long something that left its process group may hold its output open."""


async def execute(command: str, *, folder: Path, seconds: float, lock: int) -> str:
    """What the command prints, both streams, and how it ended, as text for the model.

    Returns after the command and all of its process group are dead; when cancelled, it kills them first.
    `lock` is an open descriptor that lives as long as they do.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(_Guard, command, folder, seconds, lock))
    try:
        guard = await asyncio.shield(starting)
    except asyncio.CancelledError:
        guard = await starting
        guard.kill()
        await asyncio.to_thread(guard.report)
        raise
    report = asyncio.ensure_future(asyncio.to_thread(guard.report))
    try:
        return await asyncio.shield(report)
    except asyncio.CancelledError:
        guard.kill()
        await report
        raise


class _Guard:
    def __init__(self, command: str, folder: Path, seconds: float, lock: int) -> None:
        self.seconds = seconds
        self._closing = threading.Lock()
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        words = [sys.executable, "-I", "-S", __file__, str(seconds), str(lifeline), str(status), command]
        try:
            self._process = subprocess.Popen(
                words,
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lifeline, status, lock),
            )
        finally:
            os.close(lifeline)
            os.close(status)

    def report(self) -> str:
        """Wait for the end; blocks. Nothing of the command is alive when this returns."""
        try:
            output, dropped, ended = self._follow()
        finally:
            # The guard has done this. If the command has killed or stopped the guard, it is done here; until it is
            # waited for, its number is nobody else's.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.kill()
            os.close(self._status)
        text = output.decode(errors="replace")
        if dropped:
            text += f"\n[output truncated: {dropped} more bytes]"
        if ended.startswith("code "):
            return f"{text}\n[exit {ended}]" if ended != "code 0" else text or "[no output]"
        return f"{text}\n[killed after {self.seconds:g} s]" if ended == "timeout" else f"{text}\n[killed]"

    def _follow(self) -> tuple[bytes, int, str]:
        """The first OUTPUT_BYTES of the output, how many more there were, and what the guard says at the end."""
        assert self._process.stdout
        kept, total, ended = bytearray(), 0, ""
        last = time.monotonic() + self.seconds + GRACE_SECONDS
        with self._process.stdout as pipe:
            watched: list[Any] = [pipe, self._status]
            while (left := last - time.monotonic()) > 0:
                ready = select.select(watched, [], [], left)[0]
                if self._status in ready:
                    ended = os.read(self._status, 100).decode()
                    watched = [pipe]  # until what stands in it has been read
                    last = time.monotonic() + GRACE_SECONDS
                elif ready:
                    if not (chunk := os.read(pipe.fileno(), 65536)):
                        break
                    total += len(chunk)
                    kept += chunk[: OUTPUT_BYTES - len(kept)]
        if not ended and self._status in select.select([self._status], [], [], 0)[0]:
            ended = os.read(self._status, 100).decode()
        return bytes(kept), total - len(kept), ended

    def kill(self) -> None:
        """End the process group: the guard notices within POLL_SECONDS. A second time nothing happens."""
        with self._closing:  # by the thread that follows the command, and by a caller that is cancelled
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1


def _environment(folder: Path) -> dict[str, str]:
    """All that a command gets to see of ours."""
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    return {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


POLL_SECONDS = 0.01


def guard(seconds: float, lifeline: int, status: int, command: str) -> None:
    """Be the guard: start the command, tell how it ended, and take its process group along."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    process = subprocess.Popen(["/bin/sh", "-c", command])
    end = time.monotonic() + seconds
    ended = "timeout"
    while time.monotonic() < end:
        if (code := process.poll()) is not None:
            ended = f"code {code if code >= 0 else 128 - code}"
            break
        if select.select([lifeline], [], [], POLL_SECONDS)[0]:
            ended = "cancelled"
            break
    with suppress(BrokenPipeError):  # nobody is left to be told
        os.write(status, ended.encode())
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    guard(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
