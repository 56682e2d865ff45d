"""The Scaling tab of TensorBoard: a dynamic plugin that draws the records under --logdir while they grow."""
