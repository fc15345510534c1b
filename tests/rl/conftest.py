"""Fixtures of policy optimization; runs of them take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_policy import TINY_POLICY

from dmoerm.rl import RLPrompt, draw_prompts, make_policy


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy of about 50,000 parameters, fine-tuned; do not change it."""
    return make_policy(TINY_POLICY, tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="session")
def asked() -> list[RLPrompt]:
    """Forty prompts."""
    return draw_prompts(8)
