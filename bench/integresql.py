"""IntegreSQL, a similar daemon, started and used over its HTTP interface.

It is a Go program and not a dependency of this project. It is measured if the environment names its
server program:

    go install github.com/allaboutapps/integresql/cmd/server@v1.1.0
    INTEGRESQL=~/go/bin/server make bench
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from bench import work
from bench.peers import free_port
from clonepool.postgres.endpoint import from_url

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "INTEGRESQL"
"""Environment variable with the path of the server program."""
HELD_MIN, HELD_MAX = 8, 16
"""Databases that it holds ready, as many as clonepool's clones."""
_HASH = "bench"
_START_SECONDS = 20.0
_ANSWER_SECONDS = 60.0
_MODULE = re.compile(rb"github\.com/allaboutapps/integresql\t(v[\d.]+)")


def program() -> Path | None:
    """Return the server program that the environment names, or None."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def version(path: Path) -> str:
    """Return the version that Go has written into the program, or an empty string."""
    found = _MODULE.search(path.read_bytes())
    return found[1].decode() if found else ""


@contextmanager
def running(path: Path, url: str, script: str) -> Iterator[int]:
    """Run it on a server, make a template of an SQL script, and yield its port.

    Args:
        path: of the program.
        url: of any database on the server, as a superuser.
        script: SQL that fills the template.
    """
    endpoint, port = from_url(url), free_port()
    environment = {
        **os.environ,
        "INTEGRESQL_ADDRESS": "127.0.0.1",
        "INTEGRESQL_PORT": str(port),
        "INTEGRESQL_PGHOST": endpoint.host,
        "INTEGRESQL_PGPORT": str(endpoint.port),
        "INTEGRESQL_PGUSER": endpoint.user,
        "INTEGRESQL_PGPASSWORD": endpoint.password,
        "INTEGRESQL_TEST_INITIAL_POOL_SIZE": str(HELD_MIN),
        "INTEGRESQL_TEST_MAX_POOL_SIZE": str(HELD_MAX),
        "INTEGRESQL_LOGGER_LEVEL": "error",
    }
    quiet = subprocess.DEVNULL
    child = subprocess.Popen([path], env=environment, stdout=quiet, stderr=quiet)
    try:
        _await(port, child)
        _make_template(port, url, script)
        yield port
        _request(port, "DELETE", "/api/v1/admin/templates")  # its databases go with it
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


class IntegreSQL:
    """A test's way by IntegreSQL: ask for a database, and have it made again afterwards.

    Args:
        port: of its HTTP interface.
        url: of any database on the server, as a superuser.
    """

    def __init__(self, port: int, url: str) -> None:
        self._endpoint = from_url(url)
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
        self._id = 0

    async def get(self) -> str:
        """Ask for a database."""
        found = _ask(self._connection, "GET", f"/api/v1/templates/{_HASH}/tests")
        self._id = found["id"]
        return self._endpoint.url(found["database"]["config"]["database"])

    async def use(self, url: str) -> float:
        """Connect and run the test's statements."""
        return await work.visit(url, work.WRITES)

    async def give_back(self) -> None:
        """Ask for the database to be made again, since the test has written to it."""
        _ask(self._connection, "POST", f"/api/v1/templates/{_HASH}/tests/{self._id}/recreate")


def _make_template(port: int, url: str, script: str) -> None:
    found = _request(port, "POST", "/api/v1/templates", {"hash": _HASH})
    anyio.run(_fill, from_url(url).url(found["database"]["config"]["database"]), script)
    _request(port, "PUT", f"/api/v1/templates/{_HASH}")


async def _fill(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def _await(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"{child.args!r} ended with {child.returncode}")
        with contextlib.suppress(OSError):
            _request(port, "GET", "/-/ready", read=False)
            return
        time.sleep(0.02)
    raise TimeoutError(str(child.args))


def _request(
    port: int, method: str, path: str, body: dict[str, str] | None = None, *, read: bool = True
) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        return _ask(connection, method, path, body, read=read)
    finally:
        connection.close()


def _ask(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: dict[str, str] | None = None,
    *,
    read: bool = True,
) -> Any:
    """Return the JSON of the answer, None where it has no content."""
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, body=json.dumps(body) if body else None, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    if read and answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
    return json.loads(content) if read and content else None
