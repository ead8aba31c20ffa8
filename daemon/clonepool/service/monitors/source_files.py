"""Reads the source files of all templates: what they hold now, and where that may change.

Blocks for as long as the file system does: for threads. When to read is up to the file monitor.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from clonepool.errors import ClonepoolError, ResourceError
from clonepool.postgres.templates.recipe import patterns_of, read_files, watched_files
from clonepool.service.monitors.watch_points import Places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.recipe import Recipe

_MOST_GONE = 1_000
"""Missing files of one template that are still watched for."""


class SourceFiles(NamedTuple):
    """The source files of all templates at one moment.

    Attributes:
        states: by template, what its files hold, or the reason why that is not known.
        files: by template, the files that decide, and such as once did and are gone.
        places: where all this may change.
    """

    states: Mapping[str, object]
    files: Mapping[str, list[str]]
    places: Places


def read_sources(
    recipes: Mapping[str, Recipe], digests: Digests, before: SourceFiles | None
) -> SourceFiles:
    """Read the source files of all recipes.

    Args:
        recipes: by template.
        digests: of files that were read before; those that have not changed are not read again.
        before: what was read the last time.

    Raises:
        ResourceError: the machine is short of something, and nothing is known.
    """
    places = Places()
    states: dict[str, object] = {}
    files: dict[str, list[str]] = {}
    for template, recipe in recipes.items():
        try:
            states[template] = read_files(recipe, digests).entries
        except ResourceError:
            raise
        except (ClonepoolError, OSError) as error:  # the build says what is wrong
            states[template] = str(error)
        former = before.files.get(template, []) if before else []
        files[template] = _with_gone(watched_files(recipe, digests), former)
        for pattern in patterns_of(recipe):
            is_dump = recipe.dump is not None and pattern == recipe.dump.file
            places.add_pattern(str(recipe.directory), pattern, "*" if is_dump else "*.sql")
        for path in files[template]:
            places.add_file(path)
    return SourceFiles(states, files, places)


def _with_gone(now: list[str], before: list[str]) -> list[str]:
    """Return the files to be watched: those that are gone may come back to the same path."""
    known = set(now)
    others = (path for path in before if path not in known)
    return now + [path for path in others if now == [] or not os.path.lexists(path)][:_MOST_GONE]
