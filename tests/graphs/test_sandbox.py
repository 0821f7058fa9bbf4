"""The sandbox of graphs/coding_agent.py: no path leads out of it, and no command outlives its limits or its worker."""

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from graphs.tools import sandbox as module
from graphs.tools import sandbox_command
from graphs.tools.sandbox import MAX_FILE_BYTES, Refused, Sandbox
from graphs.tools.sandbox_command import OUTPUT_BYTES
from tests.conftest import ROOT

PATIENCE_SECONDS = 60.0
LIMIT_SECONDS = 3.0
"""Of commands that are to be killed; long enough for them to say who they are."""


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("CODING_SANDBOX", str(tmp_path / "boxes"))
    (tmp_path / "secret").write_text("secret")
    box = Sandbox("one")
    assert box.files() == []  # makes the folder
    return box


def alive(pid: int) -> bool:
    """A process that has ended and was not waited for does not count."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what processes do can only be asked again
            await asyncio.sleep(0.01)


async def test_files_are_written_read_and_listed(sandbox: Sandbox) -> None:
    assert await sandbox.write("src/deep/main.py", "print('ä')\n") == 12
    await sandbox.write("./README.md", "one")
    await sandbox.write("README.md", "two")
    assert sandbox.read("src/deep/main.py") == "print('ä')\n"
    assert sandbox.read("README.md") == "two"
    assert sandbox.files() == ["README.md", "src/deep/main.py"]
    assert [path.name for path in sandbox.path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "src/../../secret",
        "",
        ".",
        "..",
        "a//b",
        "src/",
        "./..",
        "a\0b",
        "\ud800",
        "a\nb",
        "/".join("x" * 21),
    ],
)
async def test_path_that_leads_out_is_refused(sandbox: Sandbox, tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused, match="no path inside of the sandbox"):
        sandbox.read(path)
    with pytest.raises(Refused, match="no path inside of the sandbox"):
        await sandbox.write(path, "x")
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["x" * 300, "file/below", "folder", "pipe", "missing", "socket"])
async def test_what_the_file_system_refuses_is_told(sandbox: Sandbox, path: str) -> None:
    await sandbox.write("file", "x")
    (sandbox.path / "folder").mkdir()
    os.mkfifo(sandbox.path / "pipe")
    os.mknod(sandbox.path / "socket", 0o140600)
    with pytest.raises(Refused):
        sandbox.read(path)
    if path != "missing":
        with pytest.raises(Refused):
            await sandbox.write(path, "x")


async def test_links_are_not_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (sandbox.path / "file").symlink_to(tmp_path / "secret")
    (sandbox.path / "folder").symlink_to(tmp_path / "outside")
    (sandbox.path / "parent").symlink_to("..")
    (sandbox.path / "nowhere").symlink_to(tmp_path / "new")
    for path in ("file", "folder/secret", "parent/one/x", "parent/parent/secret", "nowhere"):
        with pytest.raises(Refused):
            sandbox.read(path)
        with pytest.raises(Refused):
            await sandbox.write(path, "x")
    assert (tmp_path / "secret").read_text() == "secret"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert "folder/secret" not in sandbox.files()


async def test_link_that_is_put_there_meanwhile_is_not_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    """A folder is replaced by a link and back, as fast as can be, while files are written and read below it."""
    outside, inside = tmp_path / "outside", sandbox.path / "folder"
    outside.mkdir()
    (outside / "file").write_text("secret")
    stop, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            with suppress(OSError):  # the writer has made the folder anew
                if inside.is_symlink():
                    inside.unlink()
                    swaps += 1
                else:
                    shutil.rmtree(inside)
                    inside.symlink_to(outside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    written = refused = 0
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while swaps < 500 or written < 20 or refused < 20:
                try:
                    await sandbox.write("folder/file", "ours")
                    written += 1
                    assert sandbox.read("folder/file") == "ours"
                except Refused:
                    refused += 1
                await asyncio.sleep(0)
    finally:
        stop.set()
        swapper.join()
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("file", "secret")]


async def test_large_files_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(Refused, match="bytes are more than"):
        await sandbox.write("big", "x" * (MAX_FILE_BYTES + 1))
    await sandbox.run(f"head -c {MAX_FILE_BYTES + 1} /dev/zero > big")
    with pytest.raises(Refused, match="larger than"):
        sandbox.read("big")


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 101, "a\0"])
def test_folder_of_a_session_has_a_plain_name(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(ValueError, match="named by letters"):
        Sandbox(name)


# -- commands

ENDLESS = "echo $$ > pid; while :; do echo x >> log; sleep 0.01; done"


async def test_command_tells_what_it_printed_and_how_it_ended(sandbox: Sandbox) -> None:
    assert await sandbox.run("echo out; echo err >&2") == "out\nerr\n"
    assert await sandbox.run("true") == "[no output]"
    assert await sandbox.run("echo no; exit 3") == "no\n\n[exit code 3]"
    assert await sandbox.run("kill -9 $$") == "\n[exit code 137]"
    assert (await sandbox.run("pwd")).strip() == str(sandbox.path)
    assert await sandbox.run("cat") == "[no output]"  # nobody types


async def test_command_sees_no_key_of_the_worker(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    seen = await sandbox.run("env; tr '\\0' '\\n' < /proc/$PPID/environ; ls -l /proc/self/fd /proc/$PPID/fd")
    assert f"HOME={sandbox.path}" in seen
    assert "secret" not in seen
    assert "socket:" not in seen


async def test_output_is_cut_with_a_note(sandbox: Sandbox) -> None:
    printed = await sandbox.run("head -c 1000000 /dev/zero | tr '\\0' x; echo end >&2")
    assert printed == "x" * OUTPUT_BYTES + f"\n[output truncated: {1_000_004 - OUTPUT_BYTES} more bytes]"


async def test_time_limit_kills_the_whole_process_group(sandbox: Sandbox) -> None:
    started = time.monotonic()
    printed = await sandbox.run("sleep 600 & echo $!; sh -c 'echo $$; sleep 600'", seconds=LIMIT_SECONDS)
    assert time.monotonic() - started < 60
    assert printed.endswith("[killed after 3 s]")
    for pid in map(int, printed.split()[:2]):
        await until(lambda pid=pid: not alive(pid))


async def test_time_limit_holds_for_a_command_that_prints_without_end(sandbox: Sandbox) -> None:
    printed = await sandbox.run("yes", seconds=LIMIT_SECONDS)
    assert "[output truncated: " in printed
    assert printed.endswith("[killed after 3 s]")


async def test_what_a_command_leaves_running_ends_with_it(sandbox: Sandbox) -> None:
    started = time.monotonic()
    pid = int((await sandbox.run("sleep 600 & echo $!")).split()[0])
    assert time.monotonic() - started < 60
    await until(lambda: not alive(pid))


@pytest.mark.parametrize("attack", ["kill -9 $PPID", "kill -STOP $PPID", "trap '' TERM INT HUP"])
async def test_command_cannot_get_rid_of_its_guard(sandbox: Sandbox, attack: str) -> None:
    printed = await sandbox.run(f"echo $$; {attack}; sleep 60", seconds=LIMIT_SECONDS)
    assert "[killed" in printed
    pid = int(printed.split()[0])
    await until(lambda: not alive(pid))


async def test_process_that_leaves_the_group_holds_nobody_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_command, "GRACE_SECONDS", 0.2)
    started = time.monotonic()
    assert "done" in await sandbox.run("setsid sleep 90 & echo done")
    assert time.monotonic() - started < 60


async def test_command_of_a_cancelled_caller_is_dead_before_the_next_one(sandbox: Sandbox) -> None:
    command = asyncio.create_task(sandbox.run(ENDLESS, seconds=60))
    await until(lambda: (sandbox.path / "log").exists())
    command.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(asyncio.CancelledError):
            await command
    assert not alive(int(sandbox.read("pid")))
    assert await sandbox.run("wc -l < log") == await sandbox.run("wc -l < log")


async def test_writers_and_commands_take_turns(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    until_go = "until test -e go; do sleep 0.01; done"
    busy = asyncio.create_task(sandbox.run(f"echo begun > a; {until_go}; cat a", seconds=60))
    await until(lambda: (sandbox.path / "a").exists())
    writer = asyncio.create_task(Sandbox("one").write("a", "later"))
    await asyncio.sleep(0.3)  # it has time to go wrong
    assert not writer.done()
    (sandbox.path / "go").touch()
    assert await busy == "begun\n"
    await writer
    assert sandbox.read("a") == "later"
    (sandbox.path / "go").unlink()
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    busy = asyncio.create_task(sandbox.run(f"echo begun > b; {until_go}", seconds=60))
    await until(lambda: (sandbox.path / "b").exists())
    with pytest.raises(Refused, match="in use"):
        await sandbox.run("true")
    await Sandbox("two").run("true")  # other sessions do not wait
    (sandbox.path / "go").touch()
    await busy


async def test_command_dies_with_a_killed_worker_and_holds_the_folder_until_then(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = f"asyncio.run(Sandbox('one').run({ENDLESS!r}, seconds=60))"
    program = f"import asyncio; from graphs.tools.sandbox import Sandbox; {work}"
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        await until(lambda: (sandbox.path / "log").exists())
        command = psutil.Process(int(sandbox.read("pid")))
        guard = command.parent()
        assert guard
        guard.suspend()
    finally:
        worker.kill()
        worker.wait()
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.3)
    with pytest.raises(Refused, match="in use"):
        await sandbox.run("true")
    assert alive(command.pid)
    monkeypatch.setattr(module, "LOCK_SECONDS", PATIENCE_SECONDS)
    guard.resume()
    assert await sandbox.run("true") == "[no output]"
    await until(lambda: not alive(command.pid))


async def test_no_descriptor_is_left_open(sandbox: Sandbox) -> None:
    await sandbox.run("true")
    gc.collect()  # what others have left open
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await sandbox.run("echo x")
        await sandbox.write("a/b", "x")
        with pytest.raises(Refused):
            await sandbox.write("a/b/c/d", "x")
        sandbox.read("a/b")
        sandbox.files()
    assert len(os.listdir("/proc/self/fd")) == before
