"""Templates that are filled by migration tools, configured as users would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import TemplateFailedError
from support.daemons import Daemon, clean_up, eventually
from support.queries import value
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CONFIG = """\
[http]
listen = ""
[templates.shop]
min_ready = 1
max_clones = 2
[templates.shop.command]
"""
COLUMNS = """
SELECT string_agg(column_name, ' ' ORDER BY ordinal_position)
FROM information_schema.columns WHERE table_name = '{}'
"""

ALEMBIC_CONFIG = f"""{CONFIG}
run = ["{sys.executable}", "-m", "alembic", "upgrade", "head"]
watch = ["migrations/**/*.py"]
"""
ALEMBIC_FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table("item", sa.Column("id", sa.Integer, primary_key=True))
"""
ALEMBIC_SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("item", sa.Column("price", sa.Numeric))
"""
ALEMBIC = {
    "alembic.ini": "[alembic]\nscript_location = migrations\n",
    "migrations/env.py": """
import os

import sqlalchemy as sa
from alembic import context

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
with sa.create_engine(url).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
""",
    "migrations/versions/0001_item.py": ALEMBIC_FIRST,
}

DJANGO_CONFIG = f"""{CONFIG}
run = ["{sys.executable}", "-m", "django", "migrate"]
watch = ["settings.py", "shop/migrations/*.py"]
env = {{ DJANGO_SETTINGS_MODULE = "settings", PYTHONPATH = "." }}
"""
DJANGO = {
    "settings.py": """
import os

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ["PGPASSWORD"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
    }
}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "of a test"
""",
    "shop/__init__.py": "",
    "shop/models.py": """
from django.db import models


class Item(models.Model):
    price = models.IntegerField()
""",
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": """
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Item",
            [("id", models.BigAutoField(primary_key=True)), ("price", models.IntegerField())],
        )
    ]
""",
}

NODE_CONFIG = f"""{CONFIG}
run = ["node_modules/.bin/node-pg-migrate", "up"]
watch = ["migrations/*.js"]
"""
NODE = {
    "package.json": json.dumps(
        {"private": True, "dependencies": {"node-pg-migrate": "^9.0.0", "pg": "^8.0.0"}}
    ),
    "migrations/1700000000000_item.js": """
exports.up = (pgm) => {
  pgm.createTable("item", { id: "id", price: { type: "numeric", notNull: true } });
};
""",
}
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


def put(directory: Path, name: str, text: str) -> None:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@contextmanager
def project(
    config: str, files: Mapping[str, str], prepare: Callable[[Path], None] = lambda _: None
) -> Iterator[Daemon]:
    """Run a daemon in a project's directory, once it is prepared."""
    with open_directory() as directory:
        daemon = Daemon(directory, config)
        for name, text in files.items():
            put(directory, name, text)
        prepare(directory)
        try:
            yield daemon.start()
        finally:
            clean_up(daemon)


def columns(daemon: Daemon, table: str) -> list[str]:
    """Return the columns of a table, as a new lease has them."""
    with daemon.client() as client, client.lease("shop", timeout=60) as lease:
        return str(value(lease.url, COLUMNS.format(table))).split()


def npm_install(directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not on PATH")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=1"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    if done.returncode and any(code in done.stderr for code in NO_NETWORK):
        pytest.skip("the npm registry cannot be reached")
    assert done.returncode == 0, done.stderr


def test_alembic_fills_a_template_and_a_new_migration_is_applied() -> None:
    with project(ALEMBIC_CONFIG, ALEMBIC) as daemon:
        assert columns(daemon, "item") == ["id"]
        put(daemon.directory, "migrations/versions/0002_price.py", ALEMBIC_SECOND)
        eventually(lambda: bool(daemon.events("template.stale")), what="the migration is seen")
        assert columns(daemon, "item") == ["id", "price"]
        assert len(daemon.events("template.built")) == 2


def test_a_file_that_is_no_migration_causes_no_build() -> None:
    with project(ALEMBIC_CONFIG, ALEMBIC) as daemon:
        assert columns(daemon, "item") == ["id"]
        for name in ("models.py", "migrations/README", "migrations/versions/notes.txt"):
            put(daemon.directory, name, "nothing to migrate")
        time.sleep(2)  # sleeps: a migration is seen within a fraction of that
        assert columns(daemon, "item") == ["id"]
        assert not daemon.events("template.stale")
        assert len(daemon.events("template.built")) == 1


def test_django_fills_a_template() -> None:
    with project(DJANGO_CONFIG, DJANGO) as daemon:
        assert columns(daemon, "shop_item") == ["id", "price"]


@pytest.mark.timeout(240)
def test_node_pg_migrate_fills_a_template() -> None:
    with project(NODE_CONFIG, NODE, npm_install) as daemon:
        assert columns(daemon, "item") == ["id", "price"]


def test_what_the_tool_complains_of_is_told_with_the_lease() -> None:
    wrong = ALEMBIC_FIRST + '    op.execute("SELECT nothing FROM item")\n'
    with (
        project(ALEMBIC_CONFIG, ALEMBIC | {"migrations/versions/0001_item.py": wrong}) as daemon,
        pytest.raises(TemplateFailedError, match='column "nothing" does not exist'),
    ):
        columns(daemon, "item")
