"""The loss to expect of a planned run: by own runs, else by the published law of another corpus, widely."""

from __future__ import annotations

import numpy as np

from isoflop.fit.frontier.allocation import interval
from isoflop.fit.papers.published import published
from isoflop.fit.posterior import Posterior

REFERENCE, OTHERS = "chinchilla-refit", ("hoffmann2022-approach3-unrounded", "muennighoff2023")
"""The published law with draws of its constants, on MassiveText; another fit of it, and the law of C4."""
LEAST_APART = 0.02
"""Of ln L between corpora, where the laws happen to cross."""
FITTED_TO = (3e18, 3e21)
"""FLOPs of the runs behind the reference (Hoffmann et al. 2022, figure 4)."""
REACH = 1e3
"""A factor of compute beyond these at which no loss is stated: its draws know nothing of a law that bends."""

Expected = tuple[float | None, tuple[float, float] | None, str]


def expected_loss(N: float, D: float, own: Posterior | None = None, level: float = 0.8) -> Expected:
    """Nats per token with an interval, or None; and whose they are, or why there are none.

    Without own runs it is Chinchilla's loss, and the interval knows that the reader's corpus is another: it is widened
    by as much as other published laws differ at that N and D.

    Args:
        N: parameters.
        D: tokens, none of them repeated.
        own: what own runs say.
        level: of the interval.
    """
    if own is not None:
        losses = np.exp(own.run_losses(N, D))
        said = "the loss is that of the law behind the size, fitted to all own runs; it knows no change of recipe"
        return float(np.median(losses)), interval(losses, level), said
    C = 6 * N * D
    if not FITTED_TO[0] / REACH <= C <= FITTED_TO[1] * REACH:
        return None, None, f"L is open: {C:.2g} FLOPs are beyond a factor {REACH:,.0f} of the runs that laws come from"
    law, others = published(REFERENCE).law, [published(name).law for name in OTHERS]
    assert law is not None
    loss, drawn = float(law.loss(N=N, D=D)), law.loss_draws(N=N, D=D)
    assert drawn is not None
    theirs = [float(other.loss(N=N, D=D, U=D)) for other in others if other is not None]
    apart = max(LEAST_APART, *(abs(float(np.log(each / loss))) for each in theirs))
    drawn = drawn * np.exp(apart * np.random.default_rng(0).standard_normal(len(drawn)))
    said = (
        f"the loss is that of Chinchilla's corpus and tokenizer ({REFERENCE}); its interval allows for another corpus, "
        "but another tokenizer shifts it by more"
    )
    return loss, interval(drawn, level), said
