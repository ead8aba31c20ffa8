"""The templates that clients make, in all places that know of templates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from clonepool.config import TemplateSection
from clonepool.core.client_templates import Method
from clonepool.core.events import TemplateEntered, TemplateRemoved
from clonepool.core.fleet import Fleet
from clonepool.core.naming import Namer, Serials
from clonepool.postgres.capabilities import Capabilities
from clonepool.postgres.roles import Rights
from clonepool.service.template_table import TemplateTable
from clonepool.service.templates.registry import Origin, Registry

if TYPE_CHECKING:
    from clonepool.core.events import Event
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.clones.copier import Copiers

ABLE = Capabilities(180_000, "18", 1, True, 100, "UTF8", "C")
ORIGIN = Origin(Method.DEFINE, "", "postgres", Rights.OWNER)


class Events:
    """Gives events to a fleet that has nothing to do."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.handled: list[Event] = []

    def handle(self, event: Event) -> None:
        """Let the fleet decide."""
        self.handled.append(event)
        self._fleet.handle(event, 0.0)


def test_a_template_made_again_inherits_nothing_from_the_one_of_that_name_before() -> None:
    fleet = Fleet({}, 10, Namer("main", 1), Serials(0))
    table = TemplateTable({}, ABLE, fleet, embedded=True)
    accepts = SimpleNamespace(enter=lambda *_: None, remove=lambda _: None)
    events = Events(fleet)
    registry = Registry(
        capabilities=ABLE,
        copiers=cast("Copiers", accepts),
        events=events,
        fleet=fleet,
        metrics=cast("Metrics", accepts),
        table=table,
    )
    section = TemplateSection()
    registry.enter("app", section, ORIGIN)
    table.rewind_disabled.add("app")
    table.changes_server.add("app")
    table.recreated_because["app"] = "it was changed too much"
    registry.remove("app")
    assert not registry.origins
    assert not table.sections
    registry.enter("app", section, ORIGIN)
    assert not table.rewind_disabled
    assert not table.changes_server
    assert not table.recreated_because
    assert [type(each) for each in events.handled] == [
        TemplateEntered,
        TemplateRemoved,
        TemplateEntered,
    ]
