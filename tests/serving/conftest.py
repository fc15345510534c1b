"""A served model that many tests ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running import served

from dmoerm.serving import ServingConfig, create_app


@pytest.fixture(scope="session")
def app(trained_run: Any) -> Any:
    return create_app(trained_run.model, ServingConfig(), "tiny")


@pytest.fixture(scope="session")
def url(app: Any) -> Iterator[str]:
    with served(app) as found:
        yield found


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=30) as found:
        yield found
