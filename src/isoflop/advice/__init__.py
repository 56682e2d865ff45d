"""Advice during training: stop, train on, resize, change the batch, something is wrong; with numbers and intervals."""

# ruff: noqa: F401

from isoflop.advice.advice import Advice, Missing, Quantity, Reason, Severity, count, nats, share
from isoflop.advice.adviser import RULES, Adviser
from isoflop.advice.curve_rules import falls_on
from isoflop.advice.data_rules import offsets
from isoflop.advice.recipe_rules import rate_unjudged, recipe_line
from isoflop.advice.run_state import Batch, Evaluated, Expected, Situation, Thresholds, falling_loss, scatter
from isoflop.advice.size_rules import BEST_SIZE, planned
