"""The compute-optimal frontier: which N and D, at what cost, and what being off it costs."""
