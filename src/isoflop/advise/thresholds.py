"""Every threshold of the advice, in one place; `thresholds=` changes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When something is said. Attributes:

    sure: probability that a warning needs: of a direction (too large, too small), of a batch beyond its bound.
    waste: extra compute over what the same loss would cost at the best size, from which a size is worth a warning.
        .2 is about a factor of 2 in N …
    waste_sure: … surely: the lower bound of a 70% interval. By the prior's width that takes D/N off by a factor of 7.
    frontier_steps: share of the planned run that must be left for advice about the rest of it.
    target: probability that the final loss misses the target.
    divergence: how far the loss must lie above its own best, in standard deviations of a logged loss …
    divergence_share: … and as a share of the best loss …
    divergence_span: … for this share of the steps done.
    off_curve: standard deviations between a logged loss and what was forecast for it …
    off_curve_share: … and the share of the loss. On 141 public curves of healthy runs 99.5% of pairs of forecasts miss
        by less than 4.2 standard deviations, and by less than 2.7%.
    plateau: share of the fall expected over the last doubling of tokens, below which the loss has stopped falling.
    in_a_row: log steps in a row at which a finding must stand before it is said.
    batch_large: B/B_crit above which compute is wasted: 2 is 2/3 of it (E/E_min = 1 + B/B_crit).
    batch_small: B/B_crit below which steps are wasted. Between .16 and .2 lies the batch of least loss.
    epoch_worth: worth of the next repeated token in new ones (Muennighoff et al. 2023) below which epochs are too many.
    overfitting: rise of an evaluation loss above its best, as a share of it (and beyond its scatter), that counts.
    schedule_over: how much longer than the run a decay may be planned: 25%, Hoffmann et al. 2022 (appendix B).
    slow: share of this run's own best speed …
    slow_hours: … where that would cost so much of the time that is left.
    stop_past_efficient: whether on_advice="stop" ends a run past its efficient stopping point too.
    """

    sure: float = 0.9
    waste: float = 0.2
    waste_sure: float = 0.85
    frontier_steps: float = 0.1
    target: float = 0.95
    divergence: float = 8.0
    divergence_share: float = 0.05
    divergence_span: float = 0.01
    off_curve: float = 5.0
    off_curve_share: float = 0.03
    plateau: float = 0.15
    in_a_row: int = 3
    batch_large: float = 2.0
    batch_small: float = 0.25
    epoch_worth: float = 0.25
    overfitting: float = 0.01
    schedule_over: float = 1.25
    slow: float = 0.7
    slow_hours: float = 0.1
    stop_past_efficient: bool = False
