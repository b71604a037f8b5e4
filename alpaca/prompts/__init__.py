"""Prompts: the only place where prompt text and token ids are made, for training and for serving alike."""
