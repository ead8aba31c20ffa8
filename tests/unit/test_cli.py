from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from clonepool.cli import COMMANDS, cli
from clonepool.cli.build_command import Steps
from clonepool.cli.define_command import command as define
from clonepool.cli.options import Duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("1d", 86_400)]
)
def test_times_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1w", "1m30s"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90, 30s, 10m, 2h or 1d"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    "typed",
    [
        "HASH -- make migrate --name x",
        "HASH make migrate --name x",
        "HASH --name app --timeout 5m -- make migrate --name x",
        "HASH --name app --timeout 5m make migrate --name x",
        "--name app HASH make migrate --name x",
        "--timeout 5m HASH --name app -- make migrate --name x",
        "--timeout 5m HASH --name app make migrate --name x",
        "--name app -- HASH make migrate --name x",
    ],
)
def test_define_leaves_the_commands_options_to_the_command(typed: str) -> None:
    context = define.make_context("define", typed.split())
    assert context.params["content"] == "HASH"
    assert context.params["argv"] == ("make", "migrate", "--name", "x")
    assert context.params["name"] == ("app" if "app" in typed else None)
    assert context.params["timeout"] == (300 if "5m" in typed else None)


@pytest.mark.parametrize("typed", ["", "HASH", "HASH --", "HASH --wrong -- make"])
def test_define_without_a_hash_or_a_command_is_refused(typed: str) -> None:
    with pytest.raises(click.UsageError):
        define.make_context("define", typed.split())


def test_a_steps_seconds_are_those_since_it_was_heard_of() -> None:
    shown: list[str] = []
    times = iter([10.0, 12.5, 12.5, 12.75])
    steps = Steps(shown.append, lambda: next(times))
    steps.begin("sealing")
    steps.begin("a.sql")
    steps.end()
    steps.end()
    assert shown == ["   2.500 s  sealing", "   0.250 s  a.sql"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_no_mark_for_click_and_keeps_its_examples_in_lines(
    name: str,
) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).output
    assert "\\b" not in shown
    assert "\b" not in shown
    for example in (line for line in shown.splitlines() if "eval " in line and "$(" in line):
        assert example.strip().startswith("eval "), example


def test_each_command_is_listed_with_its_whole_first_sentence() -> None:
    listed = CliRunner().invoke(cli, ["--help"]).output.partition("Commands:\n")[2]
    words = " ".join(listed.split())
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help is not None
        first = " ".join(command.help.partition(".")[0].split())
        assert f"{name} {first}." in words
