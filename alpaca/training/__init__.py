"""Training: one configuration, a packed trainer on top of transformers' own, and the run that ties them together."""
