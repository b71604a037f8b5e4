"""The base and adapters asked the same, side by side: `python -m alpaca.compare`."""
