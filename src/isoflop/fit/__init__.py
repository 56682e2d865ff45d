"""Fits of scaling laws to finished runs, their uncertainty, the three approaches, hold-out and plans."""
