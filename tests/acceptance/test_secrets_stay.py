"""Passwords in the configuration appear in no output of the daemon."""

from __future__ import annotations

import psycopg
import pytest

from clonepool.errors import TemplateFailedError
from support.daemons import CONFIG, eventually, running_daemon

TEMPLATES = """\
[templates.away]
database = "postgresql://me:hidden-1@127.0.0.1:1/db?sslpassword=hidden-2"
[templates.unreadable]
database = "postgresql://me:hidden-3/@127.0.0.1:1/db"
[templates.made]
command = "true --password hidden-4 postgresql://me:hidden-5@h/db"
[templates.failing]
command = { run = "echo $KEY $DATABASE_URL; PASSWORD=hidden-6 false", env = { KEY = "hidden-7" } }
"""


def test_no_password_is_in_the_log_the_status_or_a_comment() -> None:
    with running_daemon(CONFIG + TEMPLATES) as daemon, daemon.client() as client:
        for name in ("away", "unreadable", "failing"):
            eventually(lambda name=name: bool(daemon.pool(name)["failure"]))  # type: ignore[misc]
        eventually(lambda: bool(daemon.pool("made")["phase"] == "ready"))
        with pytest.raises(TemplateFailedError) as caught:
            client.lease("away", timeout=5)
        explained = [client.call("explain", template=name) for name in ("away", "made", "failing")]
        with client.lease("blog", timeout=30) as lease, psycopg.connect(lease.url) as session:
            query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
            comments = session.execute(query).fetchall()
        told = [daemon.status(), client.call("templates"), explained, comments]
        text = f"{told} {caught.value.sentence()} {daemon.log.read_text()}"
    assert "fingerprint" in text
    assert "hidden" not in text
    assert lease.env["PGPASSWORD"] not in text
