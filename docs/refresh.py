"""Write the parts of README and docs that follow from code or from results: `make docs`.

A page marks such a part by its name, and this fills it in:

    <!-- bench: NAME -->…<!-- end of NAME -->      a block of bench/results/results.md
    <!-- diagram: NAME -->…<!-- end of NAME -->    a transition table, as a Mermaid diagram
    <!-- modules: all -->…<!-- end of all -->      every module, with the first sentence about it

A test fails while a page is stale.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.core import clone, template

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "daemon" / "clonepool"
RESULTS = ROOT / "bench" / "results" / "results.md"
DIAGRAMS: dict[str, Callable[[], str]] = {
    "clone": clone.state_diagram,
    "template": template.state_diagram,
}
"""Functions that draw a transition table, by the name under which pages show it."""
_BLOCK = re.compile(
    r"(<!-- (bench|diagram|modules): (\w+) -->)(.*?)(<!-- end of \3 -->)", re.DOTALL
)


def pages() -> list[Path]:
    """Return README and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def refreshed(page: Path) -> str:
    """Return the text of a page with each of its marked parts as it should be.

    Raises:
        KeyError: the page has a part that neither the results nor the code know.
    """
    blocks = results()
    return _BLOCK.sub(
        lambda found: f"{found[1]}{_content(found[2], found[3], blocks)}{found[5]}",
        page.read_text(encoding="utf-8"),
    )


def results() -> dict[str, str]:
    """Return the blocks of the last `make bench`, by name."""
    return {name: text for _, _, name, text, _ in _BLOCK.findall(RESULTS.read_text("utf-8"))}


def modules() -> str:
    """Return a table of the modules of each package, with the first sentence of each docstring."""
    packages = [init.parent for init in sorted(PACKAGE.rglob("__init__.py"))]
    return "\n\n".join(_table(package) for package in packages)


def _table(package: Path) -> str:
    files = sorted(file for file in package.glob("*.py") if file.name != "__init__.py")
    rows = [f"| `{file.name}` | {_first_sentence(file)} |" for file in files]
    name = "/".join([PACKAGE.name, *package.relative_to(PACKAGE).parts])
    head = [f"## `{name}/`", _first_sentence(package / "__init__.py")]
    return "\n\n".join([*head, "\n".join(["| file | |", "|---|---|", *rows])] if rows else head)


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = docstring.partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.:]) (?=[A-Z])", first)[0].replace("|", r"\|")


def _content(kind: str, name: str, blocks: dict[str, str]) -> str:
    if kind == "bench":
        return blocks[name]
    if kind == "diagram":
        return f"\n```mermaid\n{DIAGRAMS[name]()}\n```\n"
    return f"\n\n{modules()}\n\n"


if __name__ == "__main__":
    for path in pages():
        path.write_text(refreshed(path), encoding="utf-8")
