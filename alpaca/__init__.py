"""Fine-tune an instruction-following language model on one machine, know what you got, and serve it.

Importing this package is instant: torch and transformers are imported where they are used.
"""

__version__ = "0.1.0"
