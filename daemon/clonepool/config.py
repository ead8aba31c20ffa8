"""TOML to frozen structs, checked. Nothing else of clonepool reads the configuration file."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec

from clonepool.core.naming import INSTANCE_PATTERN, TEMPLATE_PATTERN
from clonepool.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDED = "embedded"

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Grace = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables of the file."""


class EmbeddedSection(Section, frozen=True):
    """The server that the daemon starts itself; the meaning of each key is in config.toml."""

    storage: Literal["auto", "memory", "disk"] = "auto"
    binaries: str = ""
    user: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    max_connections: Annotated[int, msgspec.Meta(ge=20, le=10_000)] = 300
    min_free_mib: Mebibytes = 256
    settings: dict[str, str] = {}


class PoolSection(Section, frozen=True):
    """What holds for all templates together."""

    max_clones: Positive = 128
    max_storage_mib: Mebibytes = 0
    ddl_concurrency: Annotated[int, msgspec.Meta(ge=1, le=32)] = 3
    acquire_timeout: Seconds = 30.0
    stop_grace: Grace = 10.0


class AccessSection(Section, frozen=True):
    """Who may use the socket beside the daemon's own user and root."""

    allow_users: list[str] = []
    allow_groups: list[str] = []
    max_clients: Positive = 1000
    max_leases_per_client: Positive = 256
    max_pending_per_client: Positive = 1000
    unread_timeout: Seconds = 30.0


class HttpSection(Section, frozen=True):
    """Where metrics and health are served; an empty `listen` serves none."""

    listen: str = "127.0.0.1:9849"
    hosts: list[str] = []
    max_connections: Annotated[int, msgspec.Meta(ge=4, le=10_000)] = 32


class LogSection(Section, frozen=True):
    """How much is logged, and for whom."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class DumpSection(Section, frozen=True):
    """A dump of pg_dump's, and what becomes of the roles in it."""

    file: str
    roles: Literal["map", "create", "keep"] = "map"
    jobs: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2


class CommandSection(Section, frozen=True):
    """A program that fills the template, by its arguments or as a line for the shell."""

    run: str | list[str]
    watch: list[str] = []
    directory: str = "."
    env: dict[str, str] = {}
    variable: str = "DATABASE_URL"


class DatabaseSection(Section, frozen=True):
    """A database that exists: a name on the same server, or the URL of another one's."""

    source: str
    end_sessions: bool = False


class CloneOptions(Section, frozen=True):
    """How the clones of a template are held and used, however it was made."""

    extensions: list[str] = []
    settings: dict[str, str] = {}
    encoding: str = ""
    locale: str = ""
    analyze: bool = True
    max_clones: Positive = 64
    shrink_after: Seconds = 60.0
    copy: Literal["auto", "wal_log", "file_copy", "clone"] = "auto"
    recycle: Literal["auto", "recreate"] = "auto"
    verify_every: Count = 100
    stay_connected: Literal["auto", "always", "never"] = "auto"
    max_waiting: Positive = 1000
    max_lease: Grace = 0.0
    max_kept: Positive = 4
    keep_for: Seconds = 3600.0
    rights: Literal["auto", "owner", "superuser"] = "auto"
    owner: str = ""
    create_timeout: Seconds = 30.0
    build_timeout: Seconds = 600.0


_REPLACED = {
    "role": 'rights = "owner" confines leases, and `owner` names the role that owns the template',
    "password": "each clone has a login and a password of its own",
    "lease_roles": 'each clone has a login of its own; rights = "owner" confines it',
}
"""Keys of earlier versions, and what to write instead."""


class TemplateSection(CloneOptions, frozen=True):
    """One template, and what it is made from."""

    extends: str = ""
    database: str | DatabaseSection = ""
    dump: str | DumpSection = ""
    sql: list[str] = []
    command: str | list[str] | CommandSection = ""
    watch: list[str] | None = None
    keep_generations: Count = 3
    keep_generations_for: Seconds = 86_400.0
    on_failure: Literal["fail", "serve_previous"] = "fail"
    min_ready: Count = 8


class ClientTemplatesSection(CloneOptions, frozen=True):
    """Templates that clients make, and the options of those that they define."""

    allow: bool = False
    max_templates: Positive = 16
    fill_timeout: Seconds = 600.0
    unused_for: Seconds = 86_400.0


def made_by_client(options: CloneOptions) -> TemplateSection:
    """Return the section of a template without sources, of which none is held ready for nobody."""
    shared = {name: getattr(options, name) for name in CloneOptions.__struct_fields__}
    return TemplateSection(**shared, min_ready=0, keep_generations=0)


class Config(Section, frozen=True):
    """The whole file. Relative paths in it start at `directory`."""

    server: str = EMBEDDED
    instance: str = "main"
    embedded: EmbeddedSection = EmbeddedSection()
    pool: PoolSection = PoolSection()
    access: AccessSection = AccessSection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    templates: dict[str, TemplateSection] = {}
    client_templates: ClientTemplatesSection = ClientTemplatesSection()
    directory: str = "."


def load(path: Path, *, http_listen: str | None = None) -> Config:
    """Read and check the file.

    Args:
        path: of the file.
        http_listen: stands in for the file's http.listen when given.

    Raises:
        ConfigError: one line with file, key path, what was found, and what is allowed.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="name one with --config FILE") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if "directory" in raw:
        raise ConfigError(f"{path}: directory: unknown key, allowed are: {_keys(Config)}")
    try:
        config = msgspec.convert(raw, Config)
        if http_listen is not None:
            http = msgspec.structs.replace(config.http, listen=http_listen)
            config = msgspec.structs.replace(config, http=http)
        _check(config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), raw)}") from None
    return msgspec.structs.replace(config, directory=str(path.resolve().parent))


def _check(config: Config) -> None:
    """Check what types and ranges alone do not say."""
    _check_name("instance", config.instance, INSTANCE_PATTERN)
    if config.server != EMBEDDED and not re.match(r"postgres(ql)?://", config.server):
        raise msgspec.ValidationError('Expected "embedded" or a postgresql:// URL - at `$.server`')
    _check_listen(config.http.listen)
    if not config.templates and not config.client_templates.allow:
        raise msgspec.ValidationError("Expected at least one [templates.NAME] - at `$.templates`")
    for name, template in config.templates.items():
        _check_name(f"templates.{name}", name, TEMPLATE_PATTERN)
        if template.min_ready > template.max_clones:
            raise msgspec.ValidationError(
                f"Expected at most max_clones, which is {template.max_clones}"
                f" - at `$.templates.{name}.min_ready`"
            )
        _check_sources(name, template, config.templates)
    if (total := sum(t.min_ready for t in config.templates.values())) > config.pool.max_clones:
        raise msgspec.ValidationError(
            f"Expected at least {total}, the sum of all min_ready - at `$.pool.max_clones`"
        )


def _check_sources(
    name: str, template: TemplateSection, templates: dict[str, TemplateSection]
) -> None:
    """See that a template is made from something, and not from itself."""
    at = f"at `$.templates.{name}"
    sources = ("extends", "database", "dump", "sql", "command")
    if not any(getattr(template, source) for source in sources):
        raise msgspec.ValidationError(f"Expected one of {', '.join(sources)} - {at}`")
    if template.extends and template.database:
        raise msgspec.ValidationError(f"Expected nothing beside `extends` - {at}.database`")
    if (template.extends or template.database) and (template.encoding or template.locale):
        key = "encoding" if template.encoding else "locale"
        raise msgspec.ValidationError(
            f"Expected nothing: it is that of the copied one - {at}.{key}`"
        )
    if template.extends:
        _check_lower(name, templates)


def _check_lower(name: str, templates: dict[str, TemplateSection]) -> None:
    seen, lower = [name], templates[name].extends
    while lower:
        if lower not in templates or lower in seen:
            others = ", ".join(sorted(set(templates) - set(seen)))
            raise msgspec.ValidationError(
                "Expected the name of a template that does not extend this one"
                f" ({others or 'there is no other'}) - at `$.templates.{seen[-1]}.extends`"
            )
        seen.append(lower)
        lower = templates[lower].extends


def _check_name(key: str, name: str, pattern: str) -> None:
    if not re.fullmatch(pattern, name):
        raise msgspec.ValidationError(f"Expected a name that matches {pattern} - at `$.{key}`")


def _check_listen(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    if listen and not (host and port.isdigit() and int(port) < 2**16):
        raise msgspec.ValidationError('Expected "ADDRESS:PORT" or "" - at `$.http.listen`')


def _explain(error: str, raw: dict[str, Any]) -> str:
    """Say in one line where the error is, what stands there, and what is allowed."""
    message, _, place = error.partition(" - at `")
    keys = place.rstrip("`").removeprefix("$").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message)
    if unknown:
        keys, section = _locate_unknown(keys, unknown[1], raw)
        if unknown[1] in _REPLACED and issubclass(section, CloneOptions):
            return f"{keys}: is not a key any more: {_REPLACED[unknown[1]]}"
        return f"{keys}: unknown key, allowed are: {_keys(section)}"
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    if missing:
        keys, _ = _locate_unknown(keys, missing[1], raw)
        return f"{keys}: missing, and it must be there"
    keys = _concrete(keys, message, raw)
    if message.startswith("Invalid enum value"):
        return f"{keys}: found {_found(keys, raw)}, allowed: {_choices(keys)}"
    allowed = message.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    return f"{keys}: found {_found(keys, raw)}, allowed: {allowed}"


def _concrete(keys: str, message: str, raw: dict[str, Any]) -> str:
    """Put the template's name in place of the `[...]` with which msgspec names any value."""
    if "[...]" not in keys:
        return keys
    table, _, rest = keys.partition("[...]")
    for name, value in _at(table, raw).items():
        shape = TemplateSection if table == "templates" else str
        try:
            msgspec.convert(value, shape)
        except msgspec.ValidationError as error:
            if str(error).startswith(message):
                return f"{table}.{name}{rest}"
    return keys


def _locate_unknown(keys: str, field: str, raw: dict[str, Any]) -> tuple[str, type[Section]]:
    if keys.startswith("templates[...]"):
        for name, value in raw["templates"].items():
            try:
                msgspec.convert(value, TemplateSection)
            except msgspec.ValidationError as error:
                if f"`{field}`" in str(error):
                    return f"templates.{name}.{field}", TemplateSection
    section = get_type_hints(Config)[keys] if keys else Config
    return f"{keys}.{field}".lstrip("."), section


def _choices(keys: str) -> str:
    """Return the values that a key with fixed ones may have."""
    path, hint = keys.split("."), None
    section: type[Section] = Config
    if path[0] == "templates":
        path, section = path[2:], TemplateSection
    for key in path:
        hint = get_type_hints(section)[key]
        tables = [t for t in (hint, *get_args(hint)) if isinstance(t, type)]
        section = next((t for t in tables if issubclass(t, Section)), section)
    return ", ".join(repr(value) for value in get_args(hint))


def _keys(section: type[Section]) -> str:
    shared = CloneOptions.__struct_fields__ if issubclass(section, CloneOptions) else ()
    own = [field for field in section.__struct_fields__ if field not in shared]
    return ", ".join(field for field in (*own, *shared) if field != "directory")


def _at(keys: str, raw: dict[str, Any]) -> Any:
    value: Any = raw
    for key in re.findall(r"[^.\[\]]+", keys):
        value = value[int(key)] if isinstance(value, list) else value.get(key)
        if value is None:
            break
    return value


def _found(keys: str, raw: dict[str, Any]) -> str:
    value = _at(keys, raw)
    if value is None or isinstance(value, dict):
        return "a table" if value else "nothing"
    if isinstance(value, str) and "://" in value:
        return "a URL"
    hidden = keys.endswith("password") or ".env." in keys
    if hidden or (isinstance(value, str) and "password" in value):
        return "something else"  # it may be a secret, and this is logged
    return f"{value!r}"
