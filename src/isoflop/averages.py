"""Recognises a loss that was logged as its mean since the start of the run, by the noise of the curve itself.

Of a mean since the start, m at step t, the increments u = (t·m − s·m(s))/(t − s) from a logged step s to the next are
the mean losses in between, and exact. Their noise is white and that of the steps in between, σ²/(t − s), while m has
next to none and neighbours share it: σ²/t. In an ordinary log m is white and u is not. `running_mean` weighs the two on
third differences of u over ln t, which no smooth curve has. A σ beyond that of single steps, or one that grows with t,
excludes averages over a window; values alike in neighbours are no noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array

ORDER, SQUARES = 3, 20
"""Of the differences, and of their binomial weights the squares: what a parabola of ln t can't follow is noise."""
FEWEST = 16
"""Bins of loss that a judgement needs."""
AT = 524_288
LEAST, MOST = 0.002, 0.15
"""Noise of one step, nats, at `AT` tokens a batch: the least that is judged, and three times that of public logs."""
LIKELIER = 10.0
"""By how much the log likelihood of a mean has to be above that of a plain loss. Of 1,973 looks at 264 public curves,
at each tenth, 119 come to that, with a noise of .21 and more in one organisation and of .28 and more in the others:
none is taken for a mean, whichever organisation is left out of the choice."""
LATE, LATELY = 0.4, 3.0
"""The last steps have to speak for a mean alone, too: from which part on, and by how much. A steep fall before a floor
made four real runs of a toy task look like means, by as much as 35."""
SHORT = 1000
"""Steps below which nothing is judged: what bends within some hundred steps is no smooth curve of ln t. Of 40 toy runs
of 160 and 400 steps, on which nothing was chosen, 4 were taken for means; of 40 of 1,200 and 2,400 none."""
ALIKE = 0.9
"""Correlation of neighbours from which on they are no noise, but a bend that the differences leave."""


def increments(steps: Array, means: Array) -> Array:
    """The mean loss between each step and the one before, by means since step 0; shape (steps − 1,).

    >>> increments(np.array([10.0, 20.0, 40.0]), np.array([4.0, 3.5, 3.0])).tolist()
    [3.0, 2.5]
    """
    return np.asarray(np.diff(steps * means) / np.diff(steps))


def looks_averaged(steps: NDArray[Any], loss: Array, batch_tokens: float) -> bool:
    """`running_mean` of a whole log, by means over 32 bins an e-fold, up to half, three quarters or the end of it."""
    return any(_seen_averaged(steps, loss, batch_tokens, part * steps[-1]) for part in (0.5, 0.75, 1.0) if len(steps))


def _seen_averaged(steps: NDArray[Any], loss: Array, batch_tokens: float, now: float) -> bool:
    late = (steps > 0.12 * now) & (steps <= now)
    steps, loss = steps[late], loss[late]
    begin = np.flatnonzero(np.diff(np.floor(32 * np.log(steps)), prepend=-1))
    count = np.diff(np.append(begin, len(steps)))
    if len(count) < FEWEST:
        return False
    return running_mean(np.add.reduceat(steps, begin) / count, np.add.reduceat(loss, begin) / count, batch_tokens)


def running_mean(steps: Array, loss: Array, batch_tokens: float) -> bool:
    """True where a loss looks like its mean since step 0.

    Args:
        steps: ascending, about evenly spaced in their logarithm, shape (bins,).
        loss: at them, or means about them.
        batch_tokens: tokens of a step.
    """
    if len(steps) < FEWEST or steps[0] <= 0 or steps[-1] < SHORT or not batch_tokens > 0:
        return False
    wide, scale = np.diff(steps), (AT / batch_tokens) ** 0.5
    between = increments(steps, loss)
    # roughly first, for it is cheap, and most logs are far too noisy
    rough = np.median(np.abs(np.diff(between, ORDER)) * np.sqrt(wide[ORDER:]))
    if not rough <= 3 * SQUARES**0.5 * MOST * scale:  # nor where it is no number
        return False
    over_plain, over_window, sd, white = _weighed(steps, loss)
    if not (LEAST * scale < sd < MOST * scale and white[1:] @ white[:-1] < ALIKE * (white @ white)):
        return False
    late = steps > LATE * steps[-1]
    if not (over_plain > LIKELIER and over_window > 0 and late.sum() >= FEWEST):
        return False
    return _weighed(steps[late], loss[late])[0] > LATELY


def _weighed(steps: Array, loss: Array) -> tuple[float, float, float, Array]:
    """How much likelier a mean since step 0 is than a plain log, and than means over a window, in ln; then σ, and u
    made independent.
    """
    wide, middle = np.diff(steps), (steps[1:] + steps[:-1]) / 2
    differences = _differences(np.log(middle))
    seen = differences @ increments(steps, loss)
    mean, sd, white = _likelihood(seen, (differences / wide) @ differences.T)
    shape = len(wide), len(steps)
    of_loss = differences @ ((np.eye(*shape, 1) - np.eye(*shape)) * steps / wide[:, None])
    level = np.abs(loss) / max(float(np.abs(loss).max()), 1e-300)
    noises = np.ones(len(steps)), 1 / steps, level**2 + 1e-4  # the last falls with the loss, to a hundredth
    plain = [_likelihood(seen, (of_loss * variance) @ of_loss.T)[0] for variance in noises]
    window = _likelihood(seen, (differences * (middle**2 / wide)) @ differences.T)[0]
    return mean - max(plain), mean - window, sd, white


def _differences(x: Array) -> Array:
    """Differences of `ORDER` over x, each with coefficients whose squares sum to 1; shape (n − ORDER, n)."""
    near = np.lib.stride_tricks.sliding_window_view(x, ORDER + 1)
    weights = 1 / (near[:, :, None] - near[:, None, :] + np.eye(ORDER + 1)).prod(2)
    weights /= np.sqrt((weights**2).sum(1, keepdims=True))
    made = np.zeros((len(near), len(x)))
    for i in range(ORDER + 1):
        made[np.arange(len(near)), np.arange(len(near)) + i] = weights[:, i]
    return made


def _likelihood(seen: Array, shape: Array) -> tuple[float, float, Array]:
    """Log likelihood of normal values with a covariance of this shape, at its likeliest scale, that scale, and the
    values made independent.
    """
    n = len(seen)
    root = np.linalg.cholesky(shape + 1e-9 * np.trace(shape) / n * np.eye(n))
    white = np.linalg.solve(root, seen)
    variance = max(float(white @ white) / n, 1e-300)
    likelihood = -0.5 * n * float(np.log(variance)) - float(np.log(np.diag(root)).sum())
    return likelihood, float(variance**0.5), np.asarray(white, dtype=float)
