"""Advice during training: stop, train on, resize, change the batch, something is wrong; with numbers and intervals."""

from isoflop.advice.advice import Advice, Quantity, Reason, Severity, Thresholds
from isoflop.advice.adviser import Adviser
from isoflop.advice.run_state import Situation

__all__ = ["Advice", "Adviser", "Quantity", "Reason", "Severity", "Situation", "Thresholds"]
