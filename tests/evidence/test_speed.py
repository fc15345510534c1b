"""The benchmarks' own arithmetic: fits of growth, and requests of mixed sizes."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.speed.growth import polynomial, text
from evidence.speed.serving import mixed, quantiles


@pytest.mark.parametrize("factors", [(0.5, 0.002), (0.0, 0.1), (1.0, 0.0, 3e-6), (0.2, 1e-3, 2e-7)])
def test_a_fit_gives_the_factors_of_a_polynomial(factors: tuple[float, ...]) -> None:
    x = np.array([10.0, 100, 1_000, 10_000])
    y = sum(factor * x**power for power, factor in enumerate(factors))
    found, error = polynomial(x, np.asarray(y), len(factors) - 1)
    np.testing.assert_allclose(found, factors, rtol=1e-6, atol=1e-12)
    assert error < 1e-6


def test_the_error_of_a_fit_is_the_largest_relative_one() -> None:
    x = np.array([1.0, 10, 100])
    _, error = polynomial(x, x**2, 1)  # no line is near
    assert error > 0.5
    _, error = polynomial(x, np.array([1.0, 11, 100]), 1)
    assert 0 < error < 0.1


def test_requests_have_mixed_sizes() -> None:
    queries = mixed(200)
    assert {len(query.responses) for query in queries} == {1, 2, 4, 8}
    lengths = [len(response.split()) for query in queries for response in query.responses]
    assert (min(lengths), max(lengths)) == pytest.approx((8, 200), abs=5)
    assert len(set(map(str, queries))) == len(queries)
    assert text(7, 3) == text(7, 3) != text(7, 4)


def test_quantiles_are_of_all_values() -> None:
    assert quantiles([1.0] * 99 + [11.0]) == {"median": 1.0, "p99": 1.1, "ratio": 1.1}
