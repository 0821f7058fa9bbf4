"""What a coding agent may do in the sandbox of its session: tools that are steps. A refusal is told to the model."""

from langchain_core.tools import tool
from langgraph.config import get_config

from graphs.tools.sandbox import Refused, Sandbox
from perdure import step


def sandbox() -> Sandbox:
    """The folder of this session: another thread has another one."""
    return Sandbox(str(get_config()["configurable"]["thread_id"]))


@tool
@step
def list_files() -> list[str]:
    """List the files in the working directory, with those in its folders."""
    return sandbox().files()


@tool
@step
def read_file(path: str) -> str:
    """Read a text file. The path is relative to the working directory."""
    try:
        return sandbox().read(path)
    except Refused as exc:
        return f"Error: {exc}"


@tool
@step
async def write_file(path: str, content: str) -> str:
    """Create a text file or replace it as a whole. The path is relative to the working directory."""
    try:
        return f"Wrote {await sandbox().write(path, content)} bytes to {path}"
    except Refused as exc:
        return f"Error: {exc}"


@tool
@step
async def run_command(command: str) -> str:
    """Run a shell command in the working directory, for 20 seconds at most. Returns what it prints."""
    try:
        return await sandbox().run(command)
    except Refused as exc:
        return f"Error: {exc}"


TOOLS = [list_files, read_file, write_file, run_command]
