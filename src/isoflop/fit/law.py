"""A law with its constants: what fits return, what papers printed, what the frontier is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.fit import laws, laws_kaplan

Convention = Literal["total", "non_embedding", "non_embedding_with_head", "unknown"]
"""Which parameters N counts (`isoflop.observe.parameters`)."""


@dataclass(frozen=True)
class Form:
    """A formula: its function, its variables in order, the names of its constants in order."""

    name: str
    function: Any
    variables: tuple[str, ...]
    constants: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Law:
    """A formula with constants, and draws of them where they were estimated.

    Attributes:
        form: which formula (`FORMS`).
        constants: by the formula's letters.
        convention: which parameters N counts.
        draws: constants drawn from their uncertainty, each [draws]; None: point values alone.
        source: paper and table, or how it was fitted.
    """

    form: Form
    constants: Mapping[str, float]
    convention: Convention = "unknown"
    draws: Mapping[str, NDArray[np.float64]] | None = field(default=None, repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        if set(self.constants) != set(self.form.constants):
            raise ValueError(
                f"the law {self.form.name} expects constants {', '.join(self.form.constants)}, got "
                f"{', '.join(self.constants) or 'none'}"
            )

    def loss(self, **variables: ArrayLike) -> NDArray[np.float64]:
        """Loss in nats per token at the formula's variables, which broadcast."""
        return np.asarray(self.form.function(*(variables[name] for name in self.form.variables), **self.constants))

    def loss_draws(self, **variables: float) -> NDArray[np.float64] | None:
        """Loss by each draw of the constants, at one point; None where there are none."""
        if self.draws is None:
            return None
        return np.asarray(self.form.function(*(variables[name] for name in self.form.variables), **self.draws))


HOFFMANN = Form(
    "hoffmann", laws.hoffmann_loss, ("N", "D"), ("E", "A", "B", "alpha", "beta"), "L(N,D) = E + A/N^α + B/D^β"
)
KAPLAN_N = Form("kaplan-n", laws_kaplan.kaplan_loss_n, ("N",), ("N_c", "alpha_N"), "L(N) = (N_c/N)^α_N")
KAPLAN_D = Form("kaplan-d", laws_kaplan.kaplan_loss_d, ("D",), ("D_c", "alpha_D"), "L(D) = (D_c/D)^α_D")
KAPLAN_C = Form(
    "kaplan-c", laws_kaplan.kaplan_loss_c, ("C",), ("C_c", "alpha_C"), "L(C_min) = (C_c/C_min)^α_C, both in FLOPs"
)
KAPLAN_ND = Form(
    "kaplan-nd",
    laws_kaplan.kaplan_loss_nd,
    ("N", "D"),
    ("N_c", "D_c", "alpha_N", "alpha_D"),
    "L(N,D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D",
)
KAPLAN_NS = Form(
    "kaplan-ns",
    laws_kaplan.kaplan_loss_ns,
    ("N", "S_min"),
    ("N_c", "S_c", "alpha_N", "alpha_S"),
    "L(N,S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S",
)
MUENNIGHOFF = Form(
    "muennighoff",
    laws.muennighoff_loss,
    ("N", "D", "U"),
    ("E", "A", "B", "alpha", "beta", "R_D_star", "R_N_star"),
    "L(N,D,U) = E + A/N'^α + B/D'^β, D' and N' with R_D*, R_N*",
)
SCHAIPP = Form(
    "schaipp",
    laws.schaipp_loss,
    ("N", "S", "B"),
    ("E", "A_N", "alpha", "A_B", "beta", "A_S", "gamma"),
    "L(N,S,B) = E + A_N/N^α + A_B/B^β + A_S/S^γ",
)
GADRE = Form(
    "gadre", laws.gadre_loss, ("N", "D"), ("E", "a", "b", "eta"), "L = E + (a·M^η + b·M^−η)·C^−η, M = D/N, C = 6·N·D"
)
GADRE_ERROR = Form("gadre-error", laws.gadre_error, ("L",), ("epsilon", "k", "gamma"), "Err(L) = ε − k·exp(−γ·L)")

FORMS = {
    form.name: form
    for form in (
        HOFFMANN,
        KAPLAN_N,
        KAPLAN_D,
        KAPLAN_C,
        KAPLAN_ND,
        KAPLAN_NS,
        MUENNIGHOFF,
        SCHAIPP,
        GADRE,
        GADRE_ERROR,
    )
}
"""By name. All give a loss but "gadre-error", which gives a share of wrong answers from one."""
