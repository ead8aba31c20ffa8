from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool import config
from clonepool.errors import ConfigError
from support.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NOT_IN_FILE = {"directory", "path", "digest"}
GOOD = '[templates.blog]\nsql = ["*.sql"]\n'


def refused(directory: Path, text: str) -> str:
    file = directory / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def test_the_shipped_file_is_good_and_shows_every_key_with_its_default() -> None:
    shipped = config.load(ROOT / "config.toml")
    assert shipped.server == "embedded"
    text = (ROOT / "config.toml").read_text()
    uncommented = text.replace("# settings = {}", "").replace("\n# ", "\n")
    for section in (shipped, shipped.embedded, shipped.pool, shipped.access, shipped.http):
        for key in section.__struct_fields__:
            assert key in NOT_IN_FILE or f"{key} =" in uncommented or f"[{key}" in text, key


def test_the_values_shown_behind_a_hash_are_the_defaults(tmp_path: Path) -> None:
    lines = (ROOT / "config.toml").read_text().splitlines()
    keys = [
        line.removeprefix("# ").split("  #")[0] if line.startswith("# ") and " = " in line else line
        for line in lines
        if not line.startswith("# ") or line.split(" = ")[0].removeprefix("# ").isidentifier()
    ]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(keys))
    spelled, shipped = config.load(file), config.load(ROOT / "config.toml")
    for key in shipped.__struct_fields__:
        if key not in NOT_IN_FILE:
            assert getattr(spelled, key) == getattr(shipped, key), key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{GOOD}password = 31337\n",
            "templates.blog.password: is no longer a key: each clone has a login",
        ),
        (
            f"{GOOD}command = {{ run = 'x', env = {{ TOKEN = 31337 }} }}\n",
            "templates.blog.command.env.TOKEN: found something else, allowed: string",
        ),
        ("server = 'host=h password=hidden'\n", "server: found something else, allowed:"),
        ("", "templates: found nothing, allowed: at least one [templates.NAME]"),
        (f"colour = 1\n{GOOD}", "colour: unknown key, allowed are: server, instance, embedded"),
        (
            f"{GOOD}min_redy = 2\n",
            "templates.blog.min_redy: unknown key, allowed are: extends, database",
        ),
        (
            f"{GOOD}[pool]\nmax = 2\n",
            "pool.max: unknown key, allowed are: max_clones, max_st",
        ),
        (
            "[templates.blog]\nmin_ready = 1\n",
            "templates.blog: found a table, allowed: one of extends, database, dump, sql, command",
        ),
        (
            '[templates.a]\nextends = "b"\n[templates.b]\nextends = "a"\n',
            "templates.b.extends: found 'a', allowed: the name of a template that does not",
        ),
        (
            f'{GOOD}[templates.b]\nextends = "absent"\n',
            "templates.b.extends: found 'absent', allowed: the name of a template that does not",
        ),
        (
            f'{GOOD}[templates.b]\nextends = "blog"\ndatabase = "x"\n',
            "templates.b.database: found 'x', allowed: nothing beside extends",
        ),
        (
            f'{GOOD}[templates.b]\nextends = "blog"\nlocale = "C"\n',
            "templates.b.locale: found 'C', allowed: nothing",
        ),
        (f'{GOOD}dump = {{ file = "x", roles = "lose" }}\n', "templates.blog.dump.roles: found"),
        (f'{GOOD}min_ready = "four"\n', "templates.blog.min_ready: found 'four', allowed: integer"),
        (
            f"{GOOD}min_ready = -1\n",
            "templates.blog.min_ready: found -1, allowed: integer from 0 to",
        ),
        (
            f"{GOOD}min_ready = 65\n",
            "templates.blog.min_ready: found 65, allowed: at most max_clones",
        ),
        (
            f"{GOOD}max_clones = 0\n",
            "templates.blog.max_clones: found 0, allowed: integer from 1 to",
        ),
        (
            f"{GOOD}shrink_after = 0\n",
            "templates.blog.shrink_after: found 0, allowed: number above 0",
        ),
        (
            f"{GOOD}[pool]\nmax_clones = 7\n",
            "pool.max_clones: found 7, allowed: at least 8, the sum",
        ),
        (
            "[templates.blog]\nsql = []\n",
            "templates.blog: found a table, allowed: one of extends, database, dump, sql, command",
        ),
        ("[templates.blog]\nsql = [1]\n", "templates.blog.sql[0]: found 1, allowed: string"),
        ("[templates.Blog]\nsql = ['a']\n", "templates.Blog: found a table, allowed: a name that"),
        (f"[templates.{'x' * 23}]\nsql = ['a']\n", f"templates.{'x' * 23}: found a table, allowed"),
        (f"instance = 'two words'\n{GOOD}", "instance: found 'two words', allowed: a name that"),
        (f"server = 'localhost'\n{GOOD}", "server: found 'localhost', allowed: \"embedded\" or a"),
        (
            f"{GOOD}[embedded]\nstorage = 'tape'\n",
            "embedded.storage: found 'tape', allowed: 'auto', 'memory', 'disk'",
        ),
        (
            f'{GOOD}copy = "quickly"\n',
            "templates.blog.copy: found 'quickly', allowed: 'auto', 'wal_log', 'file_copy'",
        ),
        (
            f"{GOOD}[embedded]\nport = 70000\n",
            "embedded.port: found 70000, allowed: integer from 0 to 65535",
        ),
        (
            f"{GOOD}[embedded.settings]\nwork_mem = 16\n",
            "embedded.settings.work_mem: found 16, allow",
        ),
        (
            f"{GOOD}[http]\nlisten = 'here'\n",
            "http.listen: found 'here', allowed: \"ADDRESS:PORT\"",
        ),
        (f"pool = 3\n{GOOD}", "pool: found 3, allowed: table"),
        (f"directory = '/'\n{GOOD}", "directory: unknown key"),
        (f"path = '/'\n{GOOD}", "path: unknown key"),
        (f"{GOOD}dump = {{ roles = 'map' }}\n", "templates.blog.dump.file: missing, and it must"),
        (
            f"{GOOD}command = {{ run = 'x', when = 'now' }}\n",
            "templates.blog.command.when: unknown key, allowed are: run, watch, directory",
        ),
        (f"{GOOD}command = 7\n", "templates.blog.command: found 7, allowed: string or array of"),
        (f"{GOOD}analyze = 'yes'\n", "templates.blog.analyze: found 'yes', allowed: true or false"),
        (f"{GOOD}[pool]\nmax_clones = true\n", "pool.max_clones: found true, allowed: integer"),
        (
            f"{GOOD}[templates.other]\nsql = ['a']\nmin_redy = 1\n",
            "templates.other.min_redy: unknown key",
        ),
        (
            f"{GOOD}[templates.other]\nsql = ['a']\nmin_ready = -1\n",
            "templates.other.min_ready: found -1",
        ),
        ("[templates", "Expected ']' at the end of a table declaration"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, text).startswith(expected)


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    text = f"server = 'mysql://me:secret@host/'\n{GOOD}"
    assert "secret" not in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "database = ['postgresql://me:hidden@host/']",
        "sql = [['postgresql://me:hidden@host/']]",
        "command = { run = 'x', env = { PGPASSWORD = ['hidden'] } }",
        "database = { source = ['hidden'] }",
    ],
)
def test_secrets_in_tables_and_arrays_are_not_repeated(tmp_path: Path, text: str) -> None:
    assert "hidden" not in refused(tmp_path, f"[templates.blog]\n{text}\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        config.load(tmp_path / "absent.toml")
