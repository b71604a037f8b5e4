"""Rows made by a model: new instructions from seed tasks, and translations of rows."""
