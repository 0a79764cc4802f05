"""What the networks will see: a contact sheet of views, a strip per operation, and what the views have in common."""

from augment.preview.shares import Shared, what_views_share
from augment.preview.sheet import contact_sheet, denormalized
from augment.preview.strips import Strip, strip_of, strips_sheet

__all__ = ["Shared", "Strip", "contact_sheet", "denormalized", "strip_of", "strips_sheet", "what_views_share"]
