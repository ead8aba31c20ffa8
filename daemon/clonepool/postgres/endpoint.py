"""Where a server is and which role to log in as, as a URL and as `PG*` variables."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from clonepool.errors import ConfigError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_DEFAULT_PORT = 5432
_VARIABLES = {
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "gssencmode": "PGGSSENCMODE",
    "options": "PGOPTIONS",
    "sslcert": "PGSSLCERT",
    "sslcrl": "PGSSLCRL",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_LIBPQ_ONLY = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "require_auth",
        "sslcompression",
        "sslcrldir",
        "sslsni",
        "tcp_user_timeout",
    }
)
"""Parameters that libpq knows and asyncpg would pass to the server as settings."""
_OWN_PARAMETERS = ("host", "port", "user", "password", "dbname")
_SECRET_PARAMETERS = ("password", "sslpassword")
ENCODING_REMEDY = "characters such as @ : / ? # in a name or password must be percent-encoded"


class UnreadableUrlError(ValueError):
    """A URL cannot be parsed. The message contains no part of the URL, which may be secret."""

    def __init__(self) -> None:
        super().__init__("the URL cannot be read")


class Endpoint(msgspec.Struct, frozen=True):
    """One server and one role on it.

    Attributes:
        host: a name, an address, or the directory of a Unix socket.
        port: the port.
        user: the role to log in as.
        password: its password; empty for none.
        maintenance: the database from which others are created and dropped.
        parameters: further connection parameters, such as sslmode.
    """

    host: str
    port: int
    user: str
    password: str
    maintenance: str = "postgres"
    parameters: dict[str, str] = {}

    def url(self, database: str) -> str:
        """Return a libpq URL; a socket directory goes into the query, as libpq expects it."""
        who = quote(self.user, safe="")
        if self.password:
            who += f":{quote(self.password, safe='')}"
        query = dict(self.parameters)
        where = f"{self.host}:{self.port}" if ":" not in self.host else f"[{self.host}]:{self.port}"
        if self.host.startswith("/"):
            where, query = "", {"host": self.host, "port": str(self.port), **query}
        tail = f"?{urlencode(query, safe='/')}" if query else ""
        return f"postgresql://{who}@{where}/{quote(database, safe='')}{tail}"

    def asyncpg_url(self, database: str) -> str:
        """Return the URL without parameters that only libpq understands."""
        known = {k: v for k, v in self.parameters.items() if k not in _LIBPQ_ONLY}
        return msgspec.structs.replace(self, parameters=known).url(database)

    def env(self, database: str) -> dict[str, str]:
        """Return the variables that libpq and most drivers read, and `DATABASE_URL`."""
        variables = {
            "DATABASE_URL": self.url(database),
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": database,
        }
        for parameter, variable in _VARIABLES.items():
            if parameter in self.parameters:
                variables[variable] = self.parameters[parameter]
        return variables


def from_url(url: str) -> Endpoint:
    """Parse a libpq URL; what it leaves out comes from `PG*` variables and the password file.

    Raises:
        ConfigError: the URL cannot be parsed, names several hosts, or its port is not a number.
    """
    try:
        parts = split_url(url)
    except UnreadableUrlError as error:
        raise ConfigError(f"server: {error}", remedy=ENCODING_REMEDY) from None
    query = dict(parse_qsl(parts.query))
    try:
        port = int(query.get("port") or parts.port or os.environ.get("PGPORT") or _DEFAULT_PORT)
    except ValueError:
        raise ConfigError("server: the port of the URL is not a number") from None
    host = query.get("host") or unquote(parts.hostname or "") or os.environ.get("PGHOST")
    host = host or "localhost"
    if "," in parts.netloc or "," in host:
        raise ConfigError("server: the URL names several hosts", remedy="name one")
    user = query.get("user") or unquote(parts.username or "") or os.environ.get("PGUSER")
    user = user or _own_name()
    database = query.get("dbname") or unquote(parts.path.lstrip("/")) or "postgres"
    password = query.get("password") or unquote(parts.password or "")
    password = (
        password or os.environ.get("PGPASSWORD") or _from_passfile(host, port, database, user)
    )
    rest = {key: value for key, value in query.items() if key not in _OWN_PARAMETERS}
    return Endpoint(host, port, user, password, database, rest)


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError(
            f"server: the URL names no user, and user id {os.geteuid()} has no name",
            remedy="name one in the URL or in PGUSER",
        ) from None


def split_url(url: str) -> SplitResult:
    """Parse a URL.

    Raises:
        UnreadableUrlError: it is no URL, or part of a password would be taken for something else.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnreadableUrlError from None
    if parts.fragment or "@" in parts.path:
        raise UnreadableUrlError
    return parts


def without_secrets(url: str) -> tuple[str, dict[str, str]]:
    """Return a libpq URL without its passwords, and the passwords by their parameters' names.

    Raises:
        UnreadableUrlError: as from `split_url`.
    """
    parts, secrets, kept = split_url(url), {}, []
    who, at, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    if password:
        secrets["password"] = unquote(password)
    for piece in parts.query.split("&"):
        key, _, value = piece.partition("=")
        if unquote(key) in _SECRET_PARAMETERS:
            secrets[unquote(key)] = unquote(value)
        elif piece:
            kept.append(piece)
    tail = f"?{'&'.join(kept)}" if kept else ""
    return f"{parts.scheme}://{user}{at}{where}{parts.path}{tail}", secrets


def _from_passfile(host: str, port: int, database: str, user: str) -> str:
    """Look the password up in `PGPASSFILE` or `~/.pgpass`, by the rules of libpq."""
    try:
        path = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return ""
    wanted = ("localhost" if host.startswith("/") else host, str(port), database, user)
    for line in lines:
        *fields, password = _split_passfile_line(line)
        if len(fields) == len(wanted) and all(
            field in ("*", value) for field, value in zip(fields, wanted, strict=True)
        ):
            return password
    return ""


def _split_passfile_line(line: str) -> list[str]:
    r"""Split a line at colons, except after a backslash: `\:` and `\\` are literal characters."""
    if line.startswith("#"):
        return [""]
    fields, field, characters = [], "", iter(line)
    for character in characters:
        if character == "\\":
            field += next(characters, "")
        elif character == ":":
            fields.append(field)
            field = ""
        else:
            field += character
    return [*fields, field]
