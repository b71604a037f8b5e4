"""The lean forward pass over packs of examples that training and scoring share."""

import os

# Packs differ in length, and on a CPU oneDNN keeps a compiled product for every shape it has met: a thousand of them
# by default, which is more memory than the model. It reads this when torch first multiplies.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
