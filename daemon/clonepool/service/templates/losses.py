"""Generations that were found to be gone from the server, or damaged.

Jobs and monitors find them while they work with clones, and continue with their work. The template
is built again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.service.wakeup import WakeUp

if TYPE_CHECKING:
    from clonepool.service.templates.builder import TemplateBuilder
    from clonepool.service.templates.client_templates import ClientTemplates


class GenerationLosses:
    """Keeps what was reported until `pass_on` gives it to the builder of the template."""

    def __init__(self) -> None:
        self._reported: dict[str, bool] = {}
        self._woken = WakeUp()

    def lost(self, template: str) -> None:
        """The generation is no longer on the server."""
        self._reported.setdefault(template, False)
        self._woken.set()

    def damaged(self, template: str) -> None:
        """The generation is on the server, and clones of it are not what they should be."""
        self._reported[template] = True
        self._woken.set()

    async def pass_on(self, builder: TemplateBuilder, client_templates: ClientTemplates) -> None:
        """Rebuild the templates, or give up those that clients made; runs until cancelled.

        Args:
            builder: builds the configured templates.
            client_templates: the templates that clients made.
        """
        while True:
            await self._woken.wait()
            reported, self._reported = self._reported, {}
            for template, damaged in reported.items():
                if template in client_templates:
                    client_templates.lost(template, damaged=damaged)
                else:
                    builder.lost(template, damaged=damaged)
