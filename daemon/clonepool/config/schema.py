"""What may stand in the configuration file: one frozen struct a table, with types and ranges.

The meaning of each key is in config.toml. What types and ranges cannot say is checked in `load`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

EMBEDDED = "embedded"
"""The value of `server` that makes the daemon start a server of its own."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables of the file: unknown keys are errors."""


class EmbeddedSection(Section, frozen=True):
    """The PostgreSQL server that the daemon starts itself."""

    storage: Literal["auto", "memory", "disk"] = "auto"
    binaries: str = ""
    user: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    max_connections: Annotated[int, msgspec.Meta(ge=20, le=10_000)] = 300
    min_free_mib: Mebibytes = 256
    settings: dict[str, str] = {}


class PoolSection(Section, frozen=True):
    """Limits and times that apply to all templates together."""

    max_clones: Positive = 128
    max_storage_mib: Mebibytes = 0
    ddl_concurrency: Annotated[int, msgspec.Meta(ge=1, le=32)] = 3
    acquire_timeout: Seconds = 30.0
    stop_grace: SecondsOrZero = 10.0


class AccessSection(Section, frozen=True):
    """Who may use the socket, besides the daemon's own user and root."""

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
    """How much is logged, and in which format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class DumpSection(Section, frozen=True):
    """A dump that pg_dump wrote, and how the roles that it names are treated."""

    file: str
    roles: Literal["map", "create", "keep"] = "map"
    jobs: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2


class CommandSection(Section, frozen=True):
    """A program that fills the template: a list of arguments, or a line for the shell."""

    run: str | list[str]
    watch: list[str] = []
    directory: str = "."
    env: dict[str, str] = {}
    variable: str = "DATABASE_URL"


class DatabaseSection(Section, frozen=True):
    """An existing database: its name on the same server, or the URL of one on another server."""

    source: str
    end_sessions: bool = False


class CloneOptions(Section, frozen=True):
    """How the clones of a template are held and used, whatever the template is made from."""

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
    max_lease: SecondsOrZero = 0.0
    max_kept: Positive = 4
    keep_for: Seconds = 3600.0
    rights: Literal["auto", "owner", "superuser"] = "auto"
    owner: str = ""
    create_timeout: Seconds = 30.0
    build_timeout: Seconds = 600.0


class TemplateSection(CloneOptions, frozen=True):
    """One template: its sources, and how its clones are held."""

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
    """Whether clients may make templates, and the options of those that they define."""

    allow: bool = False
    max_templates: Positive = 16
    fill_timeout: Seconds = 600.0
    unused_for: Seconds = 86_400.0


def made_by_client(options: CloneOptions) -> TemplateSection:
    """Return the section of a client's template: no sources, no clones held in advance."""
    shared = {name: getattr(options, name) for name in CloneOptions.__struct_fields__}
    return TemplateSection(**shared, min_ready=0, keep_generations=0)


class ConfigFile(Section, frozen=True):
    """The whole file."""

    server: str = EMBEDDED
    instance: str = "main"
    embedded: EmbeddedSection = EmbeddedSection()
    pool: PoolSection = PoolSection()
    access: AccessSection = AccessSection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    templates: dict[str, TemplateSection] = {}
    client_templates: ClientTemplatesSection = ClientTemplatesSection()


class Config(ConfigFile, frozen=True):
    """The file's contents, and where it is.

    Attributes:
        directory: where relative paths in the file start.
        path: the file; empty when the configuration was not read from one.
        digest: of the file's keys and values, to see whether it was changed later.
    """

    directory: str = "."
    path: str = ""
    digest: str = ""
