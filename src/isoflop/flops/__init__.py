"""What a training step is: parameters, FLOPs, tokens, time. Knows torch; no trainer, no law, no file."""
