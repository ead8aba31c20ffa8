"""A template is dropped by others while no client is connected, so the daemon does not check."""

from __future__ import annotations

from support.daemons import Daemon, eventually
from support.queries import ask, tell

GENERATION = "SELECT datname FROM pg_database WHERE datname LIKE 'cp\\_%' AND datistemplate"


def test_a_template_that_is_gone_is_noticed_at_the_next_copy(daemon: Daemon) -> None:
    eventually(daemon.at_rest)
    generation = str(ask(daemon, GENERATION))
    tell(daemon, f"ALTER DATABASE {generation} IS_TEMPLATE false")
    tell(daemon, f"DROP DATABASE {generation}")
    with daemon.client() as client:
        client.lease("blog").release()
    eventually(lambda: len(daemon.events("template.built")) == 2, 5)
    eventually(daemon.at_rest, 5)
    failed = [line for line in daemon.events("clone.create_failed") if "trouble.ended" not in line]
    assert len(failed) == 1
