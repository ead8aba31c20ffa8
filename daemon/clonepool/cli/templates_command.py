"""clonepool templates: what can be leased."""

from __future__ import annotations

import json
from typing import Any

import click

from clonepool import printable
from clonepool.cli.options import json_option, socket_option
from clonepool.client import Client


@click.command("templates")
@click.option(
    "--explain", metavar="NAME", help="Show what a template is made from, and why a build is due."
)
@json_option
@socket_option
def command(*, explain: str | None, as_json: bool, socket_path: str | None) -> None:
    """List the templates, their generations, and why one failed."""
    if explain is not None:
        _explain(explain, socket_path, as_json=as_json)
        return
    with Client(socket_path) as client:
        templates = client.call("templates")
    if as_json:
        click.echo(json.dumps(templates, indent=2))
        return
    for template in templates:
        click.echo(printable.block(_described(template)))


def _described(template: dict[str, Any]) -> str:
    """Return one line, and the cause of a failure on lines of its own."""
    phase = f"{template['phase']} {template['generation']}".rstrip()
    said = (
        f"{template['template']}: {phase}, {template['ready']} ready,"
        f" {template['leased']} leased, at most {template['max_clones']}"
    )
    return f"{said}\n  {template['failure']}" if template["failure"] else said


def _explain(template: str, socket_path: str | None, *, as_json: bool) -> None:
    with Client(socket_path) as client:
        found = client.call("explain", template=template)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{template}, generation {found['generation']}, is made from:")
    for kind, entries in sorted(found["inputs"].items()):
        for name, value in entries.items():
            click.echo(printable.line(f"  {kind}: {name}  {value}"))
    for warning in found["warnings"]:
        click.echo(printable.line(f"Warning: {warning}"))
    if not found["due"]:
        click.echo("It is up to date.")
        return
    click.echo("A build is due:")
    for reason in found["due"]:
        click.echo(printable.line(f"  {reason}"))
