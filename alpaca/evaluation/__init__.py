"""Evaluation: what a fine-tune changed, for better and for worse."""
