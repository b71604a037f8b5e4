"""Cog's own server without Docker, and what it needs: `python -m alpaca.cogserver`."""
