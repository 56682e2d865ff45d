"""The gradient noise scale: the estimator, its averages, and the sources that bring what it needs while training."""
