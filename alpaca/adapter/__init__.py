"""The adapter: a folder that any PEFT tool loads, a card beside it, and both in one archive."""
