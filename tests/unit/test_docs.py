"""The docs match the code, and the files and names in them exist."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench import drawings, report
from prometheus_client import CollectorRegistry

from clonepool import paths
from clonepool.errors import BY_CODE
from clonepool.observe.metrics import Metrics, PoolCollector
from clonepool.protocol import messages
from support.servers import ROOT

if TYPE_CHECKING:
    from types import ModuleType

    import msgspec

PACKAGE = ROOT / "daemon" / "clonepool"
ARCHITECTURE = ROOT / "docs" / "architecture"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LONGEST_OVERVIEW = 1_600
"""Words of the overview, without its diagrams: it is to be read in ten minutes."""
RESULTS = ROOT / "bench" / "results"
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_docs_show_of_code_and_of_results_is_up_to_date() -> None:
    module = refresh()
    for page in module.pages():
        assert page.read_text() == module.refreshed(page), f"{page}: run `make docs`"


def test_the_docs_show_the_figures_the_diagrams_and_the_modules() -> None:
    shown = "".join(page.read_text() for page in PAGES)
    for block in ("bench: acquire", "bench: comparison", "bench: summary", "modules: all"):
        assert f"<!-- {block} -->" in shown, block
    for name in refresh().DIAGRAMS:
        assert f"<!-- diagram: {name} -->" in shown, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", sorted(ARCHITECTURE.glob("*.md")), ids=lambda page: page.stem)
def test_every_file_that_the_architecture_names_exists(page: Path) -> None:
    text = re.sub(r"<!-- modules: .*?<!-- end of all -->", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_the_overview_is_one_page_that_names_each_package() -> None:
    text = (ARCHITECTURE / "overview.md").read_text()
    prose = re.sub(r"```mermaid\n.*?```", "", text, flags=re.DOTALL)
    assert len(prose.split()) < LONGEST_OVERVIEW
    for init in PACKAGE.glob("*/__init__.py"):
        assert f"`{init.parent.name}/`" in text, init.parent
    assert "```mermaid\nflowchart" in text


def test_every_module_is_named_on_the_page_of_modules() -> None:
    text = (ARCHITECTURE / "modules.md").read_text()
    for file in PACKAGE.rglob("*.py"):
        if file.name != "__init__.py":
            heading = "/".join(["clonepool", *file.parent.relative_to(PACKAGE).parts])
            section = re.search(rf"## `{heading}/`\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
            assert section, heading
            assert f"| `{file.name}` | " in section[1], file


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)(?: [^`]*)?`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    scripts = "\n".join(re.findall(r"```\w+\n(.*?)```", text, re.DOTALL))
    typed = re.findall(r"(?:^|until |\()(?:\S*/)?clonepool ([a-z]+)", scripts, re.MULTILINE)
    for command in [*typed, *re.findall(r"`clonepool ([a-z]+)", text)]:
        assert (PACKAGE / "cli" / f"{command}_command.py").exists(), command


def test_the_first_screen_says_what_it_is_with_one_number_a_picture_and_how_to_install_it() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert re.search(r"\d ms", "".join(lines[:5]))
    first_screen = "\n".join(lines[:30])
    assert re.search(r"!\[[^\]]{40,}\]\(docs/images/\w+\.svg\)", first_screen)
    assert "pip install" in first_screen
    code = re.search(r"```python\n(.*?)```", first_screen, re.DOTALL)
    assert code
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 6


def test_what_is_installed_is_this_package_with_an_extra_that_it_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in (ROOT / "README.md", ROOT / "docs" / "installing.md"):
        for name, extra in re.findall(r"pip install\s+'([\w/]+)\[(\w+)\]'", page.read_text()):
            assert Path(name).name == project["name"], name
            assert extra in project["optional-dependencies"], extra


def test_the_matrix_of_the_workflow_has_every_supported_python_and_postgresql() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for version in re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])):
        assert f'"{version}"' in workflow, version
    for version in range(14, 19):
        assert f'"{version}"' in workflow, version
    assert "make test\n" in workflow
    assert "secrets." not in workflow


def test_the_tables_and_charts_are_those_of_the_figures() -> None:
    figures = json.loads((RESULTS / "results.json").read_text())
    assert (RESULTS / "results.md").read_text() == report.markdown(figures)
    for name, chart in drawings.draw(figures["figures"]).items():
        assert (RESULTS / name).read_text() == chart, name
