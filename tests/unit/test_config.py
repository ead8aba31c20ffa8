from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool import config
from clonepool.errors import ConfigError
from support.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

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
            assert key == "directory" or f"{key} =" in uncommented or f"[{key}" in text, key


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
        if key != "directory":
            assert getattr(spelled, key) == getattr(shipped, key), key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{GOOD}password = 31337\n",
            "templates.blog.password: is not a key any more: each clone has a login",
        ),
        (
            f"{GOOD}command = {{ run = 'x', env = {{ TOKEN = 31337 }} }}\n",
            "templates.blog.command",
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
        (f'{GOOD}min_ready = "four"\n', "templates.blog.min_ready: found 'four', allowed: int"),
        (f"{GOOD}min_ready = -1\n", "templates.blog.min_ready: found -1, allowed: int >= 0"),
        (
            f"{GOOD}min_ready = 65\n",
            "templates.blog.min_ready: found 65, allowed: at most max_clones",
        ),
        (f"{GOOD}max_clones = 0\n", "templates.blog.max_clones: found 0, allowed: int >= 1"),
        (f"{GOOD}shrink_after = 0\n", "templates.blog.shrink_after: found 0, allowed: float > 0"),
        (
            f"{GOOD}[pool]\nmax_clones = 7\n",
            "pool.max_clones: found 7, allowed: at least 8, the sum",
        ),
        (
            "[templates.blog]\nsql = []\n",
            "templates.blog: found a table, allowed: one of extends, database, dump, sql, command",
        ),
        ("[templates.blog]\nsql = [1]\n", "templates.blog.sql[0]: found 1, allowed: str"),
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
        (f"{GOOD}[embedded]\nport = 70000\n", "embedded.port: found 70000, allowed: int <= 65535"),
        (
            f"{GOOD}[embedded.settings]\nwork_mem = 16\n",
            "embedded.settings.work_mem: found 16, allow",
        ),
        (
            f"{GOOD}[http]\nlisten = 'here'\n",
            "http.listen: found 'here', allowed: \"ADDRESS:PORT\"",
        ),
        (f"pool = 3\n{GOOD}", "pool: found 3, allowed: object"),
        (f"directory = '/'\n{GOOD}", "directory: unknown key"),
        ("[templates", "Expected ']' at the end of a table declaration"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, text).startswith(expected)


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    text = f"server = 'mysql://me:secret@host/'\n{GOOD}"
    assert "secret" not in refused(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        config.load(tmp_path / "absent.toml")
