"""What a user sees: scalars, TensorBoard, the terminal's line, tables. Knows the rooms before it, no trainer."""

from isoflop.show.summary import print_summary

__all__ = ["print_summary"]
