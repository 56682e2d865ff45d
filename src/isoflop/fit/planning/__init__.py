"""Which size for a budget, and which of several options."""
