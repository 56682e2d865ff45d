"""The ways to a step's FLOPs, from the best to the last resort, as records and messages name them."""

from __future__ import annotations

GIVEN = "flops_per_token given by the user"
MEASURED = "measured on the meta device"
WATCHED = "measured on one real step"
ESTIMATED = "estimated from the nearest measured length"
FORMULA = "formula 6·N + 12·L·H·Q·T per token (PaLM, appendix B)"
SIX_ND = "6·N·D, N non-embedding"
