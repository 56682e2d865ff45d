"""Fit a law to finished runs: the global optimum, its uncertainty, and what the runs do not tell."""
