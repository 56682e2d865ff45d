"""How far approach 2 is off before any noise: its parabolas stand for profiles that aren't parabolas.

Czech et al. 2026 (arXiv:2603.22339). On an isoFLOP curve of Hoffmann's law, L − E ∝ β·e^{−αu} + α·e^{βu} with
u = ln(N/N_opt), whatever the budget. So a grid that sits alike around every optimum moves every minimum by the same
factor: the prefactor is biased, a isn't. A grid whose offset drifts with the budget biases a too. To lowest order a
dense centred grid of half-width h in ln N moves the minimum by h²(α − β)/10. With α = β an offset δ in ln N moves it by
α²δ(δ²/3 − h²/35): it grows with the offset from about .3 of the half-width on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.approaches.checks import Array, column
from isoflop.fit.approaches.compare import approach_3
from isoflop.fit.approaches.profile_groups import group
from isoflop.fit.approaches.profile_minimum import parabola, refused
from isoflop.fit.law import Law


@dataclass(frozen=True)
class ParabolaBias:
    """What approach 2 would give on noise-free losses of a law, against the law.

    Attributes:
        a, true_a: exponent found and β/(α+β).
        N_prefactor, true_N_prefactor: optimal parameters at C = 1 FLOP.
        budgets: FLOPs of the profiles that have a minimum [budgets].
        N_ratio: size found over the true optimum, by profile [budgets].
        warnings: budgets that were left out.
        sentence: the bias in words.
    """

    a: float
    true_a: float
    N_prefactor: float
    true_N_prefactor: float
    budgets: Array = field(compare=False)
    N_ratio: Array = field(compare=False)
    warnings: tuple[str, ...]
    sentence: str

    @property
    def a_bias(self) -> float:
        """Exponent found less the true one."""
        return self.a - self.true_a

    def N_ratio_at(self, C: float) -> float:
        """Size that approach 2's power law names at C FLOPs, over the true optimum."""
        return float(np.exp(np.log(self.N_prefactor / self.true_N_prefactor) + self.a_bias * np.log(C)))


def bias_on_grid(
    law: Law, C: ArrayLike, N: ArrayLike, budgets: ArrayLike | None = None, tolerance: float = 1.25
) -> ParabolaBias:
    """The bias of approach 2 on a grid of runs as it is, by a law fitted to them.

    Args:
        law: of Hoffmann's form.
        C: training FLOPs of the runs [n]; each is moved to its profile's budget.
        N: parameters [n].
        budgets, tolerance: how runs belong to profiles, as in `isoflop_profiles`.

    Raises:
        ValueError: columns that aren't positive or differ in length, fewer than two budgets with a minimum.
    """
    C, N = column("C", C, "training FLOPs"), column("N", N, "parameters")
    if len(C) != len(N):
        raise ValueError(f"expected columns of one length, got C {len(C)}, N {len(N)}")
    groups, _ = group(C, budgets, tolerance)
    return _bias(law, [(value, np.full(len(rows), value), N[rows]) for value, rows in groups])


def _bias(law: Law, profiles: list[tuple[float, Array, Array]]) -> ParabolaBias:
    frontier = approach_3(law)
    at, found, warnings = [], [], []
    for value, C, N in profiles:
        x, loss = np.log(N), law.loss(N=N, D=C / (6 * N))
        why = refused(x, loss, "parabola")
        if why is None:
            at.append(value)
            found.append(float(parabola(x, loss)[0]))
        else:
            warnings.append(f"the budget {value:.3g} FLOPs is left out: {why}")
    if len(set(at)) < 2:
        raise ValueError(f"expected at least two budgets with a minimum, got {len(at)}: {'; '.join(warnings)}")
    budgets = np.array(at)
    a, log_prefactor = np.polyfit(np.log(budgets), found, 1)
    ratio = np.exp(found) / np.array([frontier.allocate(C)[0] for C in at])
    worst = int(np.abs(np.log(ratio)).argmax())
    off = ratio[worst] - 1
    sentence = (
        f"without any noise, approach 2's parabolas on this grid would give a = {a:.4f} where the law has "
        f"{frontier.a:.4f} ({a - frontier.a:+.4f}), and an N_opt up to {abs(off):.2%} too "
        f"{'large' if off > 0 else 'small'} (at {budgets[worst]:.3g} FLOPs)"
    )
    return ParabolaBias(
        float(a),
        frontier.a,
        float(np.exp(log_prefactor)),
        frontier.N_prefactor,
        budgets,
        ratio,
        tuple(warnings),
        sentence,
    )
