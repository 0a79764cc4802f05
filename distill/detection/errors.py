"""The error of detection."""

from augment.base import UserError


class DetectionError(UserError, ValueError):
    """A detector cannot be built, trained or scored; the text names the key, file or layer."""
