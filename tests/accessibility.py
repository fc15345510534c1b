"""What axe-core, run in Chromium, says about a page."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe

LEVELS = {"wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"}


def findings(page: Any) -> list[str]:
    """Return what axe-core reports against WCAG 2.2 AA or calls serious: the rule, its impact and the elements."""
    violations = Axe().run(page).response["violations"]
    counted = [each for each in violations if LEVELS & {*each["tags"]} or each["impact"] in ("serious", "critical")]
    return [f"{each['id']} ({each['impact']}): {[node['html'] for node in each['nodes']]}" for each in counted]
