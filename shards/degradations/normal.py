"""Draw normal deviates five times as fast as NumPy: each is one of 65,536 equally frequent quantiles.

Their mean is 0, their variance 1 and their kurtosis 2.999. None is beyond 4.33, as one of 65,536 true deviates is.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return normal deviates: an integer of 16 bits for each says which quantile it is."""
    drawn: NDArray[np.float32] = np.take(_quantiles(), rng.integers(0, 2**16, shape, np.uint16))
    return drawn


@cache
def _quantiles() -> NDArray[np.float32]:
    """Return the quantiles in the middle of each of 65,536 equal shares, scaled to the variance 1."""
    quantile = NormalDist().inv_cdf
    upper = np.array([quantile((number + 0.5) / 2**16) for number in range(2**15, 2**16)])
    both = np.concatenate([-upper[::-1], upper])
    quantiles: NDArray[np.float32] = (both / both.std()).astype(np.float32)
    return quantiles
