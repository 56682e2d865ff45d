"""Advice during training: stop, train on, resize, change the batch, something is wrong; with numbers and intervals."""

from isoflop.advise.advice import Advice, Quantity, Reason, Severity
from isoflop.advise.adviser import Adviser
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds

__all__ = ["Advice", "Adviser", "Quantity", "Reason", "Severity", "Situation", "Thresholds"]
