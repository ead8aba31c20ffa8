"""Runs SQL files with PostgreSQL's own psql, and turns its error messages into errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from clonepool.core.limit_names import Limit
from clonepool.errors import ResourceError, ServerUnavailableError, TemplateFailedError
from clonepool.postgres import programs
from clonepool.postgres.server_errors import CONNECT_REMEDIES, is_unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

_ERROR_LINE = re.compile(
    r"^psql:(?P<file>.+?):(?P<line>\d+): [^\n:]+:\s+(?P<sqlstate>[0-9A-Z]{5}): (?P<message>[^\n]*)",
    re.MULTILINE,
)
_STATEMENT = re.compile(r"^psql:.+?:\d+: STATEMENT:\s+(.*)\Z", re.MULTILINE | re.DOTALL)
_CONNECTION_LOST, _SCRIPT_ERROR = 2, 3
_NO_CONNECTIONS = re.compile(
    "too many clients already|too many connections for|remaining connection slots are reserved"
)
"""Messages of SQLSTATE 53300; psql does not show the SQLSTATE of a refused connection."""
_TOO_MANY_CONNECTIONS = "53300"
_HARMLESS_CLASSES = ("00", "01", "02")
"""Classes of SQLSTATEs that are no errors."""
_SHOWN_BYTES = 2_000
"""Most characters of a message or statement that an error shows."""
_OPTIONS = {
    "client_min_messages": "warning",
    "synchronous_commit": "on",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
_OPTIONS_SINCE = {14: "idle_session_timeout", 17: "transaction_timeout"}
_AT_END = "clonepool: the file was run"
_QUEUED = "clonepool: statements queued"
_TO_END = (
    "\\set ON_ERROR_STOP on",
    "\\set VERBOSITY verbose",
    f"\\warn {_AT_END}",
    "DISCARD ALL",
    f"\\warn {_QUEUED} :PIPELINE_COMMAND_COUNT",
)
"""Commands that psql runs after the file, even after `\\q` in it, to detect an open transaction.

psql exits with 0 inside a transaction, which the server then rolls back. psql's `%x` works only in
prompts, and queries cannot distinguish a transaction block from the implicit transaction of a
single statement. So psql runs a statement that the server refuses in a transaction block. DISCARD
ALL is such a statement that every role may run, for which psql itself does not begin a transaction
when AUTOCOMMIT is off, and which leaves nothing in the database. In a pipeline (PostgreSQL 18) it
would only be queued, so the number of queued commands is printed; older versions print the
variable's name. The settings come first because the file may have changed them.
"""
_NO_ENDIF = re.compile(r"^psql:.*without finding closing \\endif", re.MULTILINE)
_IN_BLOCK = re.compile(r"^ERROR:\s+(?:25001|25P02)\b", re.MULTILINE)
_UNENDED = re.compile(rf"^{re.escape(_QUEUED)} [1-9]", re.MULTILINE)


def options(major: int) -> str:
    """Return settings for sessions of programs that fill a template, as PGOPTIONS takes them.

    An earlier file, or the template that is extended, may have given the database a time limit or
    made it read-only; these settings override that. All others are the database's own, as
    when a user runs the file by hand.

    Args:
        major: the server's version; older ones refuse settings that they do not know.
    """
    more = {name: "0" for since, name in _OPTIONS_SINCE.items() if major >= since}
    return " ".join(f"-c {name}={value}" for name, value in (_OPTIONS | more).items())


async def run_file(
    psql: Path,
    endpoint: Endpoint,
    database: str,
    file: Path,
    *,
    seconds: float,
    major: int = 0,
    directory: Path | None = None,
) -> None:
    r"""Run one file, stopping at its first error.

    `\i` and `\copy` in it are relative to the file, so psql runs in the file's directory.

    Args:
        psql: the program.
        endpoint: of the server, and the role to log in as.
        database: in which the file is run.
        file: an absolute path.
        seconds: time limit of the whole file.
        major: the server's version; 0 if it is not known.
        directory: in which to run psql instead.

    Raises:
        TemplateFailedError: names file, line, SQLSTATE, message and statement; or the file left a
            transaction open.
        ServerUnavailableError: the server was lost.
    """
    command = [str(psql), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    command += ["--set=VERBOSITY=verbose", "--echo-errors", "--no-password"]
    command += [f"--file={file}", *(f"--command={line}" for line in _TO_END)]
    environment = programs.environment(endpoint, database, options(major))
    done = await programs.run(
        command,
        env=environment,
        directory=directory or file.parent,
        seconds=seconds,
        what=str(file),
        keep_all=True,
        complaints_only=True,
    )
    if done.code != 0 or _UNENDED.search(done.output) or _NO_ENDIF.search(done.output):
        raise explain(file, done.output, done.code)


def explain(
    file: Path, stderr: str, returncode: int = _SCRIPT_ERROR
) -> TemplateFailedError | ServerUnavailableError:
    """Return the error that psql's messages report: a fault of the file, or the server was lost."""
    stderr, at_end, after = stderr.partition(f"{_AT_END}\n")
    if returncode != _CONNECTION_LOST and (_IN_BLOCK.search(after) or _UNENDED.search(after)):
        return TemplateFailedError(
            f"{file}: it ends inside a transaction, which is rolled back",
            remedy="write COMMIT at its end; each file is run by a psql of its own, so a"
            " transaction cannot continue in the next",
        )
    stderr += after if at_end else ""
    errors = [
        match
        for match in _ERROR_LINE.finditer(stderr)
        if not match["sqlstate"].startswith(_HARMLESS_CLASSES)
    ]
    if returncode == _CONNECTION_LOST or (errors and is_unavailable(errors[-1]["sqlstate"])):
        message = f"{file}: {' '.join(stderr.split())[-_SHOWN_BYTES:]}"
        if _NO_CONNECTIONS.search(stderr):
            return ResourceError(
                f"{message} (SQLSTATE {_TOO_MANY_CONNECTIONS})",
                limit=Limit.CONNECTIONS,
                remedy=CONNECT_REMEDIES[_TOO_MANY_CONNECTIONS],
            )
        return ServerUnavailableError(message)
    if not errors:
        return TemplateFailedError(f"{file}: {stderr.strip()[-_SHOWN_BYTES:] or 'psql failed'}")
    match = errors[-1]
    statement = _STATEMENT.search(stderr, match.end())
    shown = " ".join(statement[1].split())[:_SHOWN_BYTES] if statement else "unknown"
    return TemplateFailedError(
        f"{match['file']}:{match['line']}: {match['message'].strip()}"
        f" (SQLSTATE {match['sqlstate']}) in statement: {shown}"
    )
