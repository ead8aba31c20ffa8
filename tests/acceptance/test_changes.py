"""Changes of a template's sources are noticed at once, built once, and never served stale."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.client import Client
from clonepool.errors import AcquireTimeoutError, TemplateFailedError, UnknownTemplateError
from support.daemons import Daemon, eventually, running_daemon
from support.queries import ask, value

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = "CREATE TABLE t AS SELECT 1 AS v;"
TWO = "CREATE TABLE t AS SELECT 2 AS v;"
CONFIG = """\
[http]
listen = ""
[templates.shop]
sql = ["*.sql"]
min_ready = 2
max_clones = 6
"""
V = "SELECT v FROM t"
GENERATIONS = "SELECT count(*) FROM pg_database WHERE datname ~ '_shop_.*_t0_'"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running_daemon(CONFIG, files={"a.sql": ONE}) as running:
        yield running


def leased(daemon: Daemon, template: str = "shop", query: str = V) -> Any:
    with daemon.client() as client, client.lease(template, timeout=30) as lease:
        return value(lease.url, query)


def edit(daemon: Daemon, text: str, file: str = "a.sql") -> None:
    seen = len(daemon.events("template.stale"))
    (daemon.directory / file).write_text(text)
    eventually(lambda: len(daemon.events("template.stale")) > seen, what="the edit is seen")


def command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clonepool", *arguments, "--socket", str(daemon.socket)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_after_an_edit_leases_are_of_the_new_state_and_old_ones_go_on(daemon: Daemon) -> None:
    with daemon.client() as client, client.lease("shop", timeout=30) as old:
        assert value(old.url, V) == 1
        edit(daemon, TWO)
        assert leased(daemon) == 2
        assert value(old.url, V) == 1
    assert all(leased(daemon) == 2 for _ in range(4))
    eventually(lambda: daemon.pool("shop")["ready"] >= 2)
    assert all(leased(daemon) == 2 for _ in range(4))


def test_stale_ok_gets_the_old_state_while_the_new_one_is_built(
    daemon: Daemon,
) -> None:
    leased(daemon)
    eventually(lambda: daemon.pool("shop")["ready"] >= 2)
    edit(daemon, TWO + "SELECT pg_sleep(1);")
    with daemon.client() as client:
        with client.lease("shop", timeout=30, stale_ok=True) as old:
            assert value(old.url, V) == 1
            assert old.source == "ready"
        with client.lease("shop", timeout=30) as new:
            assert value(new.url, V) == 2
        with client.lease("shop", timeout=30, stale_ok=True) as new:
            assert value(new.url, V) == 2


def test_a_template_built_anew_lends_no_clones_of_the_one_before() -> None:
    counted = 'psql -qc "CREATE TABLE t AS SELECT $(wc -l < count) AS v"; echo x >> count'
    config = CONFIG.replace('sql = ["*.sql"]', f"command = '{counted}'".replace("psql", _psql()))
    with running_daemon(config, files={"count": "x\n"}) as daemon, daemon.client() as client:
        with client.lease("shop", timeout=30) as old:
            assert value(old.url, V) == 1
            client.call("build", template="shop", anew=True)
        assert all(leased(daemon) == 2 for _ in range(4))
        daemon.stop()
        daemon.start()
        assert leased(daemon) == 2


def test_files_in_directories_that_are_new_are_seen_too() -> None:
    config = CONFIG.replace('["*.sql"]', '["a.sql", "more*/b.sql"]')
    with running_daemon(config, files={"a.sql": ONE}) as daemon:
        with pytest.raises(TemplateFailedError, match=r"'more\*/b\.sql' names no file"):
            leased(daemon)
        (daemon.directory / "more1").mkdir()
        edit(daemon, "INSERT INTO t VALUES (7);", "more1/b.sql")
        assert leased(daemon, query="SELECT sum(v)::int FROM t") == 8
        edit(daemon, "INSERT INTO t VALUES (8);", "more1/b.sql")
        assert leased(daemon, query="SELECT sum(v)::int FROM t") == 9


def test_edits_in_a_directory_that_was_replaced_and_behind_switched_links_are_served() -> None:
    config = CONFIG.replace('["*.sql"]', '["mig/*.sql"]')
    with running_daemon(config) as daemon:
        (daemon.directory / "v1").mkdir()
        (daemon.directory / "v1" / "1.sql").write_text(ONE)
        (daemon.directory / "mig").symlink_to("v1")
        eventually(lambda: leased_or_none(daemon) == 1)
        shutil.copytree(daemon.directory / "v1", daemon.directory / "v2")
        (daemon.directory / "v2" / "1.sql").write_text(TWO)
        (daemon.directory / "new").symlink_to("v2")
        (daemon.directory / "new").rename(daemon.directory / "mig")
        eventually(lambda: leased_or_none(daemon) == 2)
        edit(daemon, "CREATE TABLE t AS SELECT 3 AS v;", "v2/1.sql")
        assert leased(daemon) == 3
        shutil.rmtree(daemon.directory / "v2")
        (daemon.directory / "v2").mkdir()
        edit(daemon, "CREATE TABLE t AS SELECT 4 AS v;", "v2/1.sql")
        eventually(lambda: leased_or_none(daemon) == 4)
        edit(daemon, "CREATE TABLE t AS SELECT 5 AS v;", "v2/1.sql")
        assert leased(daemon) == 5
        assert not daemon.events("template.change_found_late")


def leased_or_none(daemon: Daemon) -> Any:
    try:
        return leased(daemon)
    except TemplateFailedError:
        return None


def test_an_edit_back_while_a_build_is_at_its_end_is_not_forgotten(daemon: Daemon) -> None:
    """Whenever it falls, before or after the last check of what is built."""
    assert leased(daemon) == 1
    for number in range(8):
        (daemon.directory / "a.sql").write_text(TWO)
        with ThreadPoolExecutor() as threads:
            building = threads.submit(build_anew, daemon)
            time.sleep(number * 0.03)  # sleeps: between two edits
            (daemon.directory / "a.sql").write_text(ONE)
            building.result()
        eventually(lambda: leased(daemon) == 1)
        assert [leased(daemon) for _ in range(3)] == [1, 1, 1]


def build_anew(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.call("build", template="shop", anew=True)


def test_several_edits_in_a_row_are_built_once(daemon: Daemon) -> None:
    leased(daemon)
    for number in range(20):
        (daemon.directory / "a.sql").write_text(ONE + f"-- {number}")
    (daemon.directory / "b.sql").write_text("INSERT INTO t VALUES (7);")
    eventually(lambda: bool(daemon.events("template.stale")))
    assert leased(daemon, query="SELECT sum(v)::int FROM t") == 8
    assert len(daemon.events("template.built")) <= 3


def test_going_back_to_what_was_costs_nothing(daemon: Daemon) -> None:
    assert leased(daemon) == 1
    edit(daemon, TWO)
    assert leased(daemon) == 2
    edit(daemon, ONE)
    assert leased(daemon) == 1
    assert len(daemon.events("template.built")) == 2
    assert len(daemon.events("template.reused")) == 1
    daemon.stop()
    daemon.start()
    assert leased(daemon) == 1
    edit(daemon, TWO)
    assert leased(daemon) == 2
    assert len(daemon.events("template.built")) == 2


@pytest.mark.alone  # it measures how long the daemon takes
def test_an_edit_is_noticed_soon_and_one_among_many_files_too() -> None:
    files = {f"{number}.sql": f"-- {number}" for number in range(500)} | {"a.sql": ONE}
    with running_daemon(CONFIG, files=files) as daemon:
        assert leased(daemon) == 1
        seconds = []
        for number in range(5):
            edited = time.time()
            edit(daemon, f"-- {number} once more", "77.sql")
            stamp = json.loads(daemon.events("template.stale")[-1])["timestamp"]
            seconds.append(datetime.fromisoformat(stamp).timestamp() - edited)
            assert leased(daemon) == 1
        assert sorted(seconds)[2] < 0.5  # on a quiet machine below 0.2


def test_old_generations_are_kept_to_a_number() -> None:
    with running_daemon(CONFIG + "keep_generations = 1\n", files={"a.sql": ONE}) as daemon:
        for number in range(4):
            assert leased(daemon) == number + 1
            edit(daemon, f"CREATE TABLE t AS SELECT {number + 2} AS v;")
        assert leased(daemon) == 5
        eventually(lambda: ask(daemon, GENERATIONS) == 2)


def test_a_failed_build_is_told_at_once_and_repaired_by_the_next_edit(daemon: Daemon) -> None:
    assert leased(daemon) == 1
    edit(daemon, "CREATE TABLE t AS\nSELECT nothing;")
    with pytest.raises(TemplateFailedError, match=r"a\.sql:2: .*nothing"):
        leased(daemon)
    edit(daemon, TWO)
    assert leased(daemon) == 2


def test_serve_previous_serves_the_previous_state_while_a_build_fails() -> None:
    config = CONFIG + 'on_failure = "serve_previous"\n'
    with running_daemon(config, files={"a.sql": ONE}) as daemon:
        assert leased(daemon) == 1
        edit(daemon, "nonsense;")
        eventually(lambda: bool(daemon.events("template.previous_served")))
        assert leased(daemon) == 1
        edit(daemon, TWO)
        assert leased(daemon) == 2


def test_a_template_that_extends_another_follows_it_and_not_the_other_way() -> None:
    config = CONFIG + (
        '[templates.more]\nextends = "shop"\ncommand = "psql -qc \\"UPDATE t SET v = v + 10\\""\n'
        "min_ready = 1\nmax_clones = 2\n"
    ).replace('"psql', '"$PSQL').replace("$PSQL", _psql())
    with running_daemon(config, files={"a.sql": ONE}) as daemon:
        assert (leased(daemon, "more"), leased(daemon)) == (11, 1)
        edit(daemon, TWO)
        assert leased(daemon) == 2
        eventually(lambda: leased(daemon, "more") == 12)
        with daemon.client() as client:
            client.call("build", template="more", anew=True)
        assert len([e for e in daemon.events("template.built") if '"shop"' in e]) == 2


READS = """\
CREATE TABLE t (v int);
\\set f rows
\\copy t from 'one two.csv'
\\i :f'.inc'
"""


def test_an_edit_of_what_a_file_reads_is_seen_however_that_is_named() -> None:
    files = {"a.sql": READS, "one two.csv": "1\n", "rows.inc": ""}
    with running_daemon(CONFIG, files=files) as daemon:
        assert leased(daemon) == 1
        edit(daemon, "2\n", "one two.csv")
        assert leased(daemon) == 2
        edit(daemon, "UPDATE t SET v = 3;", "rows.inc")
        assert leased(daemon) == 3
        (daemon.directory / "rows.inc").unlink()
        eventually(lambda: daemon.pool("shop")["phase"] == "failed", what="the file is missed")
        with pytest.raises(TemplateFailedError, match=r"a\.sql:4: .*rows\.inc: there is no such"):
            leased(daemon)
        edit(daemon, "UPDATE t SET v = 4;", "rows.inc")
        assert leased(daemon) == 4


def test_an_edit_of_what_a_file_reads_while_the_daemon_is_away_is_seen_by_the_next() -> None:
    files = {"a.sql": READS, "one two.csv": "1\n", "rows.inc": ""}
    with running_daemon(CONFIG, files=files) as daemon:
        assert leased(daemon) == 1
        daemon.stop()
        (daemon.directory / "one two.csv").write_text("2\n")
        daemon.start()
        assert leased(daemon) == 2


def test_what_may_leave_a_part_of_a_file_out_is_told_in_the_log_and_by_explain() -> None:
    with running_daemon(CONFIG, files={"a.sql": f"{ONE}\n\\q\n{TWO}\n"}) as daemon:
        assert leased(daemon) == 1
        (told,) = daemon.events("template.doubtful")
        assert "a.sql:2: \\q ends the file here" in json.loads(told)["place"]
        said = command(daemon, "templates", "--explain", "shop").stdout
        assert "a.sql:2: \\q ends the file here" in said


def _psql() -> str:
    from clonepool.postgres.embedded.binaries import find_psql  # noqa: PLC0415 - of this machine

    return str(find_psql())


def test_explain_shows_what_a_template_is_made_from_and_why_a_build_is_due() -> None:
    with running_daemon(CONFIG, files={"a.sql": ONE, "b.inc": ""}) as daemon:
        leased(daemon)
        said = command(daemon, "templates", "--explain", "shop").stdout
        assert "sql: 00001 a.sql" in said
        assert "It is up to date." in said
        edit(daemon, "nonsense;")
        said = command(daemon, "templates", "--explain", "shop").stdout
        assert "A build is due:\n  sql: 00001 a.sql was changed\n" in said
        found = json.loads(command(daemon, "templates", "--explain", "shop", "--json").stdout)
        assert found["due"] == ["sql: 00001 a.sql was changed"]
        assert "unknown_template" not in command(daemon, "templates", "--explain", "shop").stderr
        with daemon.client() as client, pytest.raises(UnknownTemplateError):
            client.call("explain", template="absent")


def test_a_file_whose_name_is_no_text_is_built_and_explained() -> None:
    with running_daemon(CONFIG, files={"a.sql": ONE}) as daemon:
        leased(daemon)
        strange = os.fsencode(daemon.directory) + b"/b\xff.sql"
        with open(strange, "w") as file:  # noqa: PTH123 - a path of bytes
            file.write("CREATE TABLE strange (n integer);")
        eventually(lambda: bool(daemon.events("template.stale")))
        assert leased(daemon, query="SELECT count(*) FROM strange") == 0
        with daemon.client() as client:
            entries = client.call("explain", template="shop")["inputs"]["sql"]
            assert sorted(entries) == ["00001 a.sql", "00002 b\\udcff.sql"]
            with open(strange, "w") as file:  # noqa: PTH123 - a path of bytes
                file.write("nonsense;")
            eventually(lambda: daemon.pool("shop")["phase"] == "failed")
            assert "nonsense" in daemon.pool("shop")["failure"]
            with pytest.raises(TemplateFailedError, match="nonsense"):
                client.lease("shop", timeout=20)


def test_the_build_command_shows_each_step_and_the_whole(daemon: Daemon) -> None:
    leased(daemon)
    done = command(daemon, "build", "shop")
    assert done.returncode == 0
    assert "shop: up to date as " in done.stdout
    done = command(daemon, "build", "shop", "--anew")
    assert "shop: built as " in done.stdout
    assert " s  a.sql\n" in done.stderr
    assert leased(daemon) == 1
    edit(daemon, "SELECT 1;\nnonsense;")
    done = command(daemon, "build", "shop")
    assert done.returncode == 1
    assert "a.sql:2: " in done.stderr


def test_the_build_command_shows_a_build_that_is_under_way_and_no_negative_times(
    daemon: Daemon,
) -> None:
    leased(daemon)
    edit(daemon, TWO + "SELECT pg_sleep(2);")
    eventually(lambda: "a.sql" in building(daemon), what="the file is run")
    done = command(daemon, "build", "shop")
    assert "shop: up to date as " in done.stdout
    seconds = {what: float(took) for took, what in re.findall(r"(\S+) s  (.*)\n", done.stderr)}
    assert set(seconds) == {"a.sql", "sealing"}
    assert min(seconds.values()) >= 0


def building(daemon: Daemon) -> str:
    """Return which step of the build a client that waits is told of."""
    heard: list[str] = []
    client = Client(str(daemon.socket), on_notification=lambda _, news: heard.append(news["what"]))
    with client, contextlib.suppress(AcquireTimeoutError):
        client.lease("shop", timeout=0.01, progress=True).release()
    return " ".join(heard)


def test_an_edit_of_the_configuration_is_told_of_and_says_whether_a_start_would_fail(
    daemon: Daemon,
) -> None:
    leased(daemon)
    daemon.config.write_text(CONFIG + "# a comment\n")
    daemon.config.write_text(CONFIG.replace("max_clones = 6", "max_clones = 7"))
    eventually(lambda: len(daemon.events("config.changed")) == 1)
    told = json.loads(daemon.events("config.changed")[0])
    assert told["path"] == str(daemon.config)
    assert "restart the daemon" in told["remedy"]
    daemon.config.write_text(CONFIG + "min_redy = 7\n")
    eventually(lambda: len(daemon.events("config.changed")) == 2)
    told = json.loads(daemon.events("config.changed")[1])
    assert "templates.shop.min_redy: unknown key" in told["error"]
    assert daemon.pool("shop")["max_clones"] == 6


def test_a_client_hears_how_a_build_fares(daemon: Daemon) -> None:
    from clonepool.client import Client  # noqa: PLC0415 - with an ear

    heard: list[dict[str, Any]] = []
    with Client(str(daemon.socket), on_notification=lambda _, news: heard.append(news)) as client:
        client.call("build", template="shop", anew=True, progress=True)
    assert [each["what"] for each in heard][-3:] == ["creating the database", "a.sql", "sealing"]
    assert [each["step"] for each in heard][-3:] == [1, 2, 3]


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_template(daemon: Daemon) -> None:
    leased(daemon)
    edit(daemon, "CREATE TABLE t AS SELECT 2 AS v; SELECT pg_sleep(30);")
    building = "SELECT count(*) FROM pg_database WHERE datname ~ '_shop_.*_b[0-9a-z]+_'"
    eventually(lambda: ask(daemon, building) == 1)
    daemon.stop(9)
    (daemon.directory / "a.sql").write_text(TWO)
    daemon.start()
    assert leased(daemon) == 2
    assert ask(daemon, building) == 0


def test_waiters_hear_which_file_is_being_run() -> None:
    files = {"1.sql": ONE, "2.sql": "SELECT pg_sleep(1.5);"}
    with running_daemon(CONFIG, files=files) as daemon:
        heard: list[dict[str, Any]] = []
        client = Client(str(daemon.socket), on_notification=lambda _, news: heard.append(news))
        with client, client.lease("shop", timeout=30, progress=True):
            pass
        told = [news for news in heard if news["what"] == "2.sql"]
        assert told, heard
        assert (told[-1]["step"], told[-1]["steps"]) == (3, 4)
        assert told[-1]["phase"] == "building"
        assert told[-1]["seconds"] > 0


def test_the_command_that_watches_tells_of_each_build(daemon: Daemon) -> None:
    leased(daemon)
    argv = ["build", "shop", "--watch", "--socket", str(daemon.socket)]
    with subprocess.Popen(
        [sys.executable, "-m", "clonepool", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        try:
            assert watching.stdout.readline().startswith("shop: up to date as ")
            time.sleep(0.5)  # sleeps: nothing tells that it watches
            edit(daemon, TWO + "SELECT pg_sleep(0.5);")
            assert watching.stdout.readline().startswith("shop: building ")
            assert watching.stdout.readline().startswith("shop: ready ")
            edit(daemon, "SELEC 1;")
            lines = [watching.stdout.readline(), watching.stdout.readline()]
            assert any("a.sql:1" in line and "shop: failed" in line for line in lines), lines
        finally:
            watching.terminate()
