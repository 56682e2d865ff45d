"""`python -m isoflop` is `isoflop`."""

from isoflop.cli import app

app()
