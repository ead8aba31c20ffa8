"""Write the parts of the docs that follow from elsewhere: `make docs`. A test says when to."""

from __future__ import annotations

import re
from pathlib import Path

from clonepool.core import clone, template

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
RESULTS = DOCS.parent / "bench" / "results" / "results.md"
_DIAGRAM = re.compile(r"(?<=```mermaid\n)stateDiagram-v2\n.*?(?=\n```)", re.DOTALL)
_FIGURES = re.compile(r"(?<=\n)<!-- figures: .*?<!-- end of figures -->", re.DOTALL)


def diagrams() -> list[str]:
    """Return the state diagrams that follow from the transition tables in `core`."""
    return [clone.state_diagram(), template.state_diagram()]


def refreshed_diagrams(text: str) -> str:
    """Return a page with its state diagrams as the tables make them.

    A diagram in a page is told by its first two lines: they name the state that it begins with.
    """
    by_head = {_head(diagram): diagram for diagram in diagrams()}
    return _DIAGRAM.sub(lambda match: by_head.get(_head(match[0]), match[0]), text)


def _head(diagram: str) -> tuple[str, ...]:
    return tuple(diagram.splitlines()[:2])


def pages() -> list[Path]:
    """Return the pages that may have state diagrams in them."""
    return sorted(DOCS.rglob("*.md"))


def refreshed_readme() -> str:
    """Return README.md with the figures of the last `make bench`."""
    (figures,) = _FIGURES.findall(RESULTS.read_text(encoding="utf-8"))
    text, places = _FIGURES.subn(lambda _: figures, README.read_text(encoding="utf-8"))
    if places != 1:
        raise ValueError(f"README.md has {places} places for the figures")
    return text


if __name__ == "__main__":
    README.write_text(refreshed_readme(), encoding="utf-8")
    for page in pages():
        page.write_text(refreshed_diagrams(page.read_text(encoding="utf-8")), encoding="utf-8")
