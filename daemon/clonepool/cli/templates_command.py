"""clonepool templates: what can be leased."""

from __future__ import annotations

import json

import click

from clonepool.cli.options import json_option, socket_option
from clonepool.client import Client


@click.command("templates")
@json_option
@socket_option
def command(*, as_json: bool, socket_path: str | None) -> None:
    """List the templates, their generation, and why one failed."""
    with Client(socket_path) as client:
        templates = client.call("templates")
    if as_json:
        click.echo(json.dumps(templates, indent=2))
        return
    for template in templates:
        click.echo(
            f"{template['template']}: {template['phase']}"
            f" {template['failure'] or template['generation']}, {template['ready']} ready,"
            f" {template['leased']} leased, at most {template['max_clones']}"
        )
