"""Advice during training: stop, train on, resize, change the batch, something is wrong; with numbers and intervals."""

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count, share
from isoflop.advice.adviser import RULES, Adviser
from isoflop.advice.data_rules import offsets
from isoflop.advice.recipe_rules import recipe_line
from isoflop.advice.run_state import Batch, Evaluated, Expected, Rule, Situation, Thresholds, scatter
from isoflop.advice.size_rules import BEST_SIZE, planned

__all__ = [
    "BEST_SIZE",
    "RULES",
    "Advice",
    "Adviser",
    "Batch",
    "Evaluated",
    "Expected",
    "Missing",
    "Quantity",
    "Reason",
    "Rule",
    "Severity",
    "Situation",
    "Thresholds",
    "count",
    "offsets",
    "planned",
    "recipe_line",
    "scatter",
    "share",
]
