"""What the configured templates are made from: their recipes, and what of them has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anyio.to_thread

from clonepool.postgres.templates.recipe import Recipe, differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from clonepool.config import TemplateSection
    from clonepool.postgres.templates.builder import Builder
    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.recipe import Generation, Inputs
    from clonepool.service.credentials import Credentials
    from clonepool.service.templates.interfaces import TemplateTable


class Explanation(NamedTuple):
    """What goes into a template.

    Attributes:
        generation: the short name of the generation that a build would make.
        inputs: all that decides, by kind and name.
        due: why a build is due; empty if none is.
        warnings: what is allowed in the scripts and may not be meant.
    """

    generation: str
    inputs: dict[str, dict[str, str]]
    due: list[str]
    warnings: list[str]


class TemplateSources:
    """The sources of the configured templates.

    Args:
        builder: looks at files and at the server.
        credentials: know the owner of a template.
        directory: where relative paths begin.
        sections: the configured templates.
        table: the current generations.
    """

    def __init__(
        self,
        *,
        builder: Builder,
        credentials: Credentials,
        directory: Path,
        sections: Mapping[str, TemplateSection],
        table: TemplateTable,
    ) -> None:
        self._builder = builder
        self._credentials = credentials
        self._directory = directory
        self._sections = sections
        self._table = table

    @property
    def digests(self) -> Digests:
        """The digests of the files that were looked at."""
        return self._builder.digests

    def recipe(self, template: str) -> Recipe:
        """Return how a template is made now, on the generation that is below it now."""
        section = self._sections[template]
        return Recipe(
            template,
            section,
            self._directory,
            rewindable=self._table.is_rewindable(template),
            ownership=self._credentials.ownership(section),
            lower=self._table.generations.get(section.extends),
        )

    def recipes(self) -> dict[str, Recipe]:
        """Return the recipes of all templates."""
        return {template: self.recipe(template) for template in self._sections}

    async def inputs(self, template: str) -> Inputs:
        """Read all inputs that determine the contents of a template.

        Raises:
            TemplateFailedError: something is missing.
            ServerUnavailableError: the server does not say.
        """
        return await self._builder.inputs(self.recipe(template))

    async def compare(self, template: str) -> tuple[str, list[str]]:
        """Return the fingerprint of the sources, and how they differ from what was built.

        Raises:
            TemplateFailedError, ServerUnavailableError: as for `inputs`.
        """
        inputs = await self.inputs(template)
        return inputs.full, await anyio.to_thread.run_sync(self._due, template, inputs)

    async def changes_since(self, template: str, generation: Generation) -> list[str]:
        """Return how the sources differ from what went into a generation; empty if they do not.

        Raises:
            TemplateFailedError, ServerUnavailableError: as for `inputs`.
        """
        inputs = await self.inputs(template)
        if inputs.full == generation.full:
            return []
        return differences(generation.inputs, inputs.entries) or ["it was changed"]

    async def explain(self, template: str) -> Explanation:
        """Say what goes into a template now, and why a build of it is due, if it is.

        Raises:
            TemplateFailedError, ServerUnavailableError: as for `inputs`.
        """
        inputs = await self.inputs(template)
        due = self._due(template, inputs)
        return Explanation(inputs.short, inputs.entries, due, inputs.warnings)

    def _due(self, template: str, inputs: Inputs) -> list[str]:
        """Say why a build is due; blocks while it compares."""
        current = self._table.generations.get(template)
        if current is None:
            return ["it was never built"]
        if current.full == inputs.full:
            return []
        return differences(current.inputs, inputs.entries) or ["the format of builds changed"]
