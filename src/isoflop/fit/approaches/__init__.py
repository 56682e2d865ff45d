"""Hoffmann et al.'s three ways to the frontier, side by side."""
