"""The docs say what the code does."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from bench import drawings, report
from prometheus_client import CollectorRegistry

from clonepool import paths
from clonepool.core import clone, template
from clonepool.errors import BY_CODE
from clonepool.observe.metrics import Metrics, PoolCollector
from clonepool.protocol import messages
from support.servers import ROOT

if TYPE_CHECKING:
    import msgspec

RESULTS = ROOT / "bench" / "results"
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("diagram", [clone.state_diagram(), template.state_diagram()])
def test_each_state_diagram_in_the_docs_is_its_tables(diagram: str) -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert text.count(f"```mermaid\n{diagram}\n```") == 1, "run `make docs`"


def test_the_metrics_table_names_each_metric_and_no_other() -> None:
    registry = CollectorRegistry()
    Metrics(registry, ["blog"])
    registry.register(PoolCollector(list, lambda: 0, lambda: True, lambda: (1, 2), list))
    exported = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in registry.collect()
    }
    rows = re.findall(
        r"^\| `(clonepool_\w+)` \| (\w+) \|",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    assert set(rows) == exported


@pytest.mark.parametrize("method", sorted(messages.METHODS))
def test_the_protocol_names_every_method_and_parameter(method: str) -> None:
    section = re.search(rf"^### `{method}`\n(.*?)(?=^##|\Z)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert section, method
    for parameter in messages.METHODS[method].__struct_fields__:
        assert f"`{parameter}`" in section[1], parameter


@pytest.mark.parametrize(
    "result", [messages.AcquireResult, messages.Leaked, messages.ReserveResult]
)
def test_the_protocol_names_every_field_of_a_result(result: type[msgspec.Struct]) -> None:
    for field in result.__struct_fields__:
        assert f"`{field}`" in PROTOCOL, field


@pytest.mark.parametrize("code", [*BY_CODE, "internal_error"])
def test_the_protocol_names_every_error_code(code: str) -> None:
    assert f"| `{code}` |" in PROTOCOL


def test_the_operations_page_names_the_places_of_the_socket_in_their_order() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    places = [
        text.index(place)
        for place in (
            "--socket",
            paths.SOCKET_VARIABLE,
            "$XDG_RUNTIME_DIR/clonepool/clonepool.sock",
            "/run/clonepool/clonepool.sock",
            "/tmp/clonepool-UID/clonepool.sock",
        )
    ]
    assert places == sorted(places)


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in set(re.findall(r"`?clonepool (serve|status|exec|templates|demo)\b", text)):
        assert (ROOT / "daemon" / "clonepool" / "cli" / f"{command}_command.py").exists()


def test_the_readme_shows_the_figures_of_the_last_benchmark() -> None:
    figures = json.loads((RESULTS / "results.json").read_text())
    shown = f"{report.BEGIN}\n{report.summary(figures)}\n{report.END}"
    assert shown in (ROOT / "README.md").read_text(), "run `make docs`"


def test_the_tables_and_charts_are_those_of_the_figures() -> None:
    figures = json.loads((RESULTS / "results.json").read_text())
    assert (RESULTS / "results.md").read_text() == report.markdown(figures)
    for name, chart in drawings.draw(figures["figures"]).items():
        assert (RESULTS / name).read_text() == chart, name


def test_every_chart_of_the_readme_exists() -> None:
    charts = re.findall(r"\]\((bench/results/\w+\.svg)\)", (ROOT / "README.md").read_text())
    assert len(charts) >= 4
    for chart in charts:
        assert (ROOT / chart).exists(), chart
