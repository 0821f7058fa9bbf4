"""The `perdure` command.

`serve`, `worker`, `migrate`, `keys`, `sql`, `doctor` and `demo` work on this machine; the others talk to a running
server over HTTP (`--url`, PERDURE_URL). With `--json` a command prints one JSON value on stdout and nothing else.

Exit codes: 0 done; 1 the run, or the command, failed; 2 wrong usage; 3 a person has to answer first;
4 the server refused (unknown id, conflict, bad input); 5 the server or the database cannot be reached.
"""

import sys

import typer

from perdure.cli import agents, approvals, demo, doctor, invoke, keys, runs, serve, sql, threads, tour

app = typer.Typer(
    name="perdure",
    help="Durable agents on LangGraph and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.command("migrate")(serve.migrate)
app.command("sql")(sql.sql)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("invoke")(invoke.invoke)
app.command("tour")(tour.tour)
app.add_typer(agents.app, name="agents")
app.add_typer(runs.app, name="runs")
app.add_typer(threads.app, name="threads")
app.add_typer(approvals.app, name="approvals")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Entry point of the `perdure` script."""
    try:
        app()
    except BrokenPipeError:  # the reader of our output, say `head`, has had enough
        sys.stderr.close()
        raise SystemExit(0) from None
