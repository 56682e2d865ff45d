"""Which log intervals are recorded: all of them at first, then ever fewer, so that the file stays bounded."""

from __future__ import annotations


def due(log_index: int, per_doubling: int = 512) -> bool:
    """Whether the log interval of this index gets a point in the record.

    Every interval up to `2 * per_doubling`, then every 2nd up to twice as many, then every 4th, and so on:
    `per_doubling` points each time the run doubles, evenly spaced on a logarithmic axis. The strides are
    powers of two, so the kept indices nest, and being a function of the index alone, a resumed run stays on
    the grid. n intervals give at most `per_doubling * (log2(n / per_doubling) + 2)` points for n ≥
    `per_doubling`: with 512 of them, 10^4 intervals give 2,673, and 10^7 give 7,778 (about 3 MB).

    Args:
        log_index: 1, 2, 3 …: the interval's number since the run began (step // log_every).
        per_doubling: points each time the run doubles.

    >>> [index for index in range(1, 41) if due(index, per_doubling=4)]
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40]
    """
    if log_index < 1 or per_doubling < 1:
        raise ValueError(f"expected log_index ≥ 1 and per_doubling ≥ 1, got {log_index} and {per_doubling}")
    stride: int = 1 << ((log_index - 1) // (2 * per_doubling)).bit_length()
    return log_index % stride == 0
