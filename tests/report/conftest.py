"""Pages without plots."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each plot by an empty SVG, since drawing takes most of a page's time."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(empty))
