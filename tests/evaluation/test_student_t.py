from __future__ import annotations

import math

import pytest

from cwbass.evaluation.student_t import errors_of_95_percent


@pytest.mark.parametrize("values", [*range(2, 32), 200])
def test_it_is_the_quantile_of_scipy_up_to_thirty_degrees_of_freedom(values: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy: pip install -c constraints.txt -e '.[dev]'")
    assert errors_of_95_percent(values) == pytest.approx(stats.t.ppf(0.975, min(values - 1, 30)), abs=5e-5)


@pytest.mark.parametrize("values", [0, 1])
def test_less_than_two_values_say_nothing(values: int) -> None:
    assert errors_of_95_percent(values) == math.inf
