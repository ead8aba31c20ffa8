"""The real template builder and fleet, with a fake server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import anyio.lowlevel

from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials
from clonepool.postgres.roles import OURS
from clonepool.service.templates.builder import TemplateBuilder
from clonepool.service.templates.sources import TemplateSources

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.config import Config, TemplateSection
    from clonepool.core.events import Event
    from clonepool.core.pool import Pool
    from clonepool.errors import ClonepoolError
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.templates.builder import Builder
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Failures
    from clonepool.service.server_changes import ServerChanges


class RecordedCall:
    """A call that records its answers.

    Attributes:
        answers: results and errors, in order.
    """

    is_gone = False

    def __init__(self, number: int = 1, holder: int = 1) -> None:
        self.number = self.request = number
        self.holder = holder
        self.answers: list[object] = []
        self.notified: list[object] = []

    def reply(self, result: object) -> None:
        self.answers.append(result)

    def fail(self, error: ClonepoolError) -> None:
        self.answers.append(error)

    def notify(self, method: str, params: object) -> None:
        del method
        self.notified.append(params)


class BuilderHarness:
    """A template builder with fake dependencies.

    Args:
        config: its templates, and how many are built at a time.
        builder: builds.
        now: monotonic seconds.
        after_event: what to call.

    Attributes:
        fleet: what can be had of each template.
        templates: the builder.
        generations: the current ones.
        after_event: called after each event of the fleet.
    """

    def __init__(
        self,
        config: Config,
        builder: object,
        now: Callable[[], float],
        after_event: Callable[[], None] = lambda: None,
    ) -> None:
        limits = dict.fromkeys(config.templates, Limits(1, 4))
        self.fleet = Fleet(limits, 100, Namer("test", 1), Serials(0))
        self.sections: dict[str, TemplateSection] = dict(config.templates)
        self.generations: dict[str, Generation] = {}
        self._now = now
        self.after_event = after_event
        observed = SimpleNamespace(build_seconds=SimpleNamespace(observe=lambda _: None))
        credentials = cast(
            "Credentials", SimpleNamespace(ownership=lambda _: OURS, prepare=_accept)
        )
        self.templates = TemplateBuilder(
            builder=cast("Builder", builder),
            credentials=credentials,
            events=self,
            failures=cast(
                "Failures",
                SimpleNamespace(begin=lambda _event, _of, error, **_: error, end=lambda *_: None),
            ),
            fleet=self.fleet,
            gateway=cast("Gateway", SimpleNamespace()),
            metrics=cast("Metrics", SimpleNamespace(of=dict.fromkeys(config.templates, observed))),
            now=now,
            places=config.pool.ddl_concurrency,
            rewinder=cast(
                "Rewinder",
                SimpleNamespace(generation_rebuilt=lambda _: None, generation_retired=_accept),
            ),
            sections=config.templates,
            server_changes=cast(
                "ServerChanges",
                SimpleNamespace(enter=lambda _: None, leave=lambda _: None, accept=_accept),
            ),
            sources=TemplateSources(
                builder=cast("Builder", builder),
                credentials=credentials,
                directory=Path(config.directory),
                sections=config.templates,
                table=self,
            ),
            table=self,
        )

    def pool(self, template: str) -> Pool:
        """Return the pool of a template."""
        return self.fleet.pools[template]

    def remove(self, template: str) -> None:
        """Forget everything about a template that is given up."""
        del self.sections[template]
        self.generations.pop(template, None)

    def is_rewindable(self, template: str) -> bool:
        """Say that no template is rewound."""
        del template
        return False

    def handle(self, event: Event) -> None:
        """Give an event to the fleet; there are no jobs to do what it decides."""
        self.fleet.handle(event, self._now())
        self.after_event()


async def _accept(*_: object) -> None:
    await anyio.lowlevel.checkpoint()
