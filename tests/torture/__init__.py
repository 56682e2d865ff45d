"""`make torture`: what docs/promises.md promises, tried many times; the suite runs a handful of each."""
