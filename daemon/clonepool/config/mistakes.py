"""Where a file does not fit the schema, and why: the first mistake, as one line of text.

Only msgspec decides what fits. A value that does not is taken apart along the schema until the
part is found that does not fit by itself; so place and cause are known without reading msgspec's
messages.
"""

from __future__ import annotations

from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

import msgspec
from msgspec import inspect

from clonepool.config.schema import CloneOptions, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

Place: TypeAlias = tuple[str | int, ...]
"""The keys and positions that lead to a value."""

_REPLACED = {
    "role": 'rights = "owner" confines leases, and `owner` names the role that owns the template',
    "password": "each clone has a login and a password of its own",
    "lease_roles": 'each clone has a login of its own; rights = "owner" confines it',
}
"""Keys of earlier versions, and what to write instead."""

_SIMPLE = {inspect.StrType: "string", inspect.BoolType: "true or false"}


class MistakeError(Exception):
    """A value in the file cannot be used; the message says where it is and why, in one line."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"{_path(place)}: {problem}")


def unsuitable(place: Place, found: object, allowed: str) -> MistakeError:
    """Return the error for a value that is not one of those allowed; it repeats no secrets."""
    return MistakeError(place, f"found {_shown(place, found)}, allowed: {allowed}")


def find_mistake(hint: Any, found: object, place: Place = ()) -> MistakeError | None:
    """Return the first mistake in a value, None when it fits.

    Args:
        hint: the type that it should have, as annotated in the schema.
        found: the value, as tomllib returns it.
        place: where it is in the file.
    """
    try:
        msgspec.convert(found, hint)
    except msgspec.ValidationError:
        return _find_inside(hint, found, place) or unsuitable(place, found, _words(hint))
    return None


def _find_inside(hint: Any, found: object, place: Place) -> MistakeError | None:
    """Return the first mistake in a part of a table or an array, None if it has no such part."""
    for option in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        inner = get_args(option)
        match found:
            case dict() if isinstance(option, type) and issubclass(option, Section):
                return _find_in_section(option, found, place)
            case dict() if get_origin(option) is dict:
                return _first((inner[1], value, (*place, key)) for key, value in found.items())
            case list() if get_origin(option) is list:
                return _first((inner[0], value, (*place, n)) for n, value in enumerate(found))
            case _:
                pass
    return None


def _find_in_section(
    section: type[Section], found: dict[str, Any], place: Place
) -> MistakeError | None:
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    for key in found:
        if key not in fields:
            return _unknown_key(section, (*place, key))
    for key, field in fields.items():
        if field.required and key not in found:
            return MistakeError((*place, key), "required key is missing")
    return _first((fields[key].type, value, (*place, key)) for key, value in found.items())


def _first(parts: Iterable[tuple[Any, object, Place]]) -> MistakeError | None:
    return next(filter(None, (find_mistake(*part) for part in parts)), None)


def _unknown_key(section: type[Section], place: Place) -> MistakeError:
    inherits = issubclass(section, CloneOptions)
    if inherits and (instead := _REPLACED.get(str(place[-1]))):
        return MistakeError(place, f"is no longer supported: {instead}")
    shared = CloneOptions.__struct_fields__ if inherits else ()
    own = (key for key in section.__struct_fields__ if key not in shared)
    return MistakeError(place, f"unknown key, allowed are: {', '.join((*own, *shared))}")


def _words(hint: Any) -> str:
    """Return what may stand in the place of a value, in TOML's words."""
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    return _describe(inspect.type_info(hint))


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType():
            return f"integer from {kind.ge} to {kind.le}"
        case inspect.FloatType():
            least = f"from {kind.ge}" if kind.gt is None else f"above {kind.gt}"
            return f"number {least} to {kind.le}"
        case inspect.ListType():
            return f"array of {_describe(kind.item_type)}s"
        case inspect.UnionType():
            options = (each for each in kind.types if not isinstance(each, inspect.NoneType))
            return " or ".join(map(_describe, options))
        case _:
            return _SIMPLE.get(type(kind), "table")


def _path(place: Place) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")


def _shown(place: Place, found: object) -> str:
    """Return a value for an error, which is logged: no text that may be or hold a secret."""
    if isinstance(found, str) and "://" in found:
        return "a URL"
    if isinstance(found, (dict, Section)):
        return "a table"
    if isinstance(found, list):
        return "an array"
    if place[-1] == "password" or "env" in place or "password" in str(found):
        return "something else"
    if found is None or isinstance(found, bool):
        return {None: "nothing", True: "true", False: "false"}[found]
    return repr(found)
