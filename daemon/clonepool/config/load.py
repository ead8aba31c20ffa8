"""Reading the configuration file, and checking what types and ranges cannot say.

Nothing else of clonepool reads the file. Each mistake is told in one line: the file, the key, what
stands there, and what may stand there.
"""

from __future__ import annotations

import re
import tomllib
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from clonepool.config.mistakes import MistakeError, find_mistake, unsuitable
from clonepool.config.schema import EMBEDDED, Config, ConfigFile
from clonepool.core.naming import INSTANCE_PATTERN, TEMPLATE_PATTERN
from clonepool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from clonepool.config.mistakes import Place
    from clonepool.config.schema import TemplateSection

_SOURCES = ("extends", "database", "dump", "sql", "command")


def load(path: Path, *, http_listen: str | None = None) -> Config:
    """Read and check the file.

    Args:
        path: the file.
        http_listen: replaces the file's http.listen when given.

    Raises:
        ConfigError: one line with the file, the key, what was found, and what is allowed.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="name one with --config FILE") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        file = _convert(raw)
        if http_listen is not None:
            http = msgspec.structs.replace(file.http, listen=http_listen)
            file = msgspec.structs.replace(file, http=http)
        _check(file)
    except MistakeError as mistake:
        raise ConfigError(f"{path}: {mistake}") from None
    absolute = path.resolve()
    return Config(
        **msgspec.structs.asdict(file),
        directory=str(absolute.parent),
        path=str(absolute),
        digest=sha256(repr(raw).encode("utf-8", "backslashreplace")).hexdigest(),
    )


def _convert(raw: dict[str, Any]) -> ConfigFile:
    """Return the file's tables as structs.

    Raises:
        MistakeError: they do not fit.
    """
    mistake = find_mistake(ConfigFile, raw)
    if mistake is not None:
        raise mistake
    return msgspec.convert(raw, ConfigFile)


def _check(file: ConfigFile) -> None:
    """Check what types and ranges cannot say.

    Raises:
        MistakeError: something does not go together.
    """
    _check_name(("instance",), file.instance, file.instance, INSTANCE_PATTERN)
    if file.server != EMBEDDED and not re.match(r"postgres(ql)?://", file.server):
        raise unsuitable(("server",), file.server, '"embedded" or a postgresql:// URL')
    _check_listen(file.http.listen)
    if not file.templates and not file.client_templates.allow:
        raise unsuitable(("templates",), None, "at least one [templates.NAME]")
    for name, template in file.templates.items():
        place = ("templates", name)
        _check_name(place, name, template, TEMPLATE_PATTERN)
        if template.min_ready > template.max_clones:
            allowed = f"at most max_clones, which is {template.max_clones}"
            raise unsuitable((*place, "min_ready"), template.min_ready, allowed)
        _check_sources(place, template)
        if template.extends:
            _check_chain(name, file.templates)
    if (total := sum(t.min_ready for t in file.templates.values())) > file.pool.max_clones:
        allowed = f"at least {total}, the sum of all min_ready"
        raise unsuitable(("pool", "max_clones"), file.pool.max_clones, allowed)


def _check_sources(place: Place, template: TemplateSection) -> None:
    """Check that a template has a source, and no two that exclude each other."""
    if not any(getattr(template, source) for source in _SOURCES):
        raise unsuitable(place, template, f"one of {', '.join(_SOURCES)}")
    if template.extends and template.database:
        raise unsuitable((*place, "database"), template.database, "nothing next to extends")
    if template.extends or template.database:
        for key in ("encoding", "locale"):
            if value := getattr(template, key):
                allowed = "nothing: a copied database keeps its own"
                raise unsuitable((*place, key), value, allowed)


def _check_chain(name: str, templates: Mapping[str, TemplateSection]) -> None:
    """Check that following `extends` ends at a template that extends none."""
    seen, lower = [name], templates[name].extends
    while lower:
        if lower not in templates or lower in seen:
            others = ", ".join(sorted(set(templates) - set(seen)))
            allowed = (
                "the name of a template that does not extend this one"
                f" ({others or 'there is no other'})"
            )
            raise unsuitable(("templates", seen[-1], "extends"), lower, allowed)
        seen.append(lower)
        lower = templates[lower].extends


def _check_name(place: Place, name: str, found: object, pattern: str) -> None:
    if not re.fullmatch(pattern, name):
        raise unsuitable(place, found, f"a name that matches {pattern}")


def _check_listen(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    if listen and not (host and port.isdigit() and int(port) < 2**16):
        raise unsuitable(("http", "listen"), listen, '"ADDRESS:PORT" or ""')
