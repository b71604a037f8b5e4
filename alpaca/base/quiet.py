"""What the libraries say to their own developers, kept off the screen."""

from __future__ import annotations

import logging
import warnings


def hush_libraries() -> None:
    """Keep the libraries' notes to their own developers off the screen: none of them asks the user for anything."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # optional kernels that are not installed
    for text in (".*is_gradient_checkpointing. is deprecated.*", "Adapter .* was active which is now deleted.*"):
        warnings.filterwarnings("ignore", message=text)
