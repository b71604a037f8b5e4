"""The rows of tiny fine-tunes."""

from tests.training.conftest import no_settings_from_outside, rows

__all__ = ["no_settings_from_outside", "rows"]
