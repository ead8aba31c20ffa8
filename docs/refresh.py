"""Write the parts of README and docs that follow from code or from results: `make docs`.

A page marks such a part by its name, and this fills it in:

    <!-- bench: NAME -->…<!-- end of NAME -->        a block of bench/results/results.md
    <!-- diagram: NAME -->…<!-- end of NAME -->      a transition table, as a Mermaid diagram

A test fails while a page is stale.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.core import clone

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "results.md"
DIAGRAMS: dict[str, Callable[[], str]] = {"clone": clone.state_diagram}
"""Functions that draw a transition table, by the name under which pages show it."""
_BLOCK = re.compile(r"(<!-- (bench|diagram): (\w+) -->)(.*?)(<!-- end of \3 -->)", re.DOTALL)


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


def _content(kind: str, name: str, blocks: dict[str, str]) -> str:
    return f"\n```mermaid\n{DIAGRAMS[name]()}\n```\n" if kind == "diagram" else blocks[name]


if __name__ == "__main__":
    for path in pages():
        path.write_text(refreshed(path), encoding="utf-8")
