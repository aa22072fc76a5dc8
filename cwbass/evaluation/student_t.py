"""Student's t: how far a mean of few values may be from the truth."""

from __future__ import annotations

import math

# Quantiles that 95 % lie between, for 1 to 30 degrees of freedom; with more, that of 30 is a little too wide.
_T95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def errors_of_95_percent(values: int) -> float:
    """Standard errors on each side of a mean of so many values within which the truth lies 95 times in 100; infinite below two."""
    return _T95[min(values - 1, len(_T95)) - 1] if values > 1 else math.inf
