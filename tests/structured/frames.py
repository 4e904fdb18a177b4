"""A stand-in for data frames, so that no test needs a library of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Frame:
    """As much of a data frame as matters here: a table and the names of its columns."""

    def __init__(self, values: NDArray[Any], columns: Any) -> None:
        self.values = values
        self.columns = columns
        self.shape = values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype)
