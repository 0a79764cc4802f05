"""What the networks will see: a contact sheet of views, a strip per operation, and what the views have in common."""

from augment.preview.overlap import ViewOverlap, view_overlap
from augment.preview.sheet import contact_sheet, denormalized
from augment.preview.strips import Strip, strip_of, strips_sheet

__all__ = ["Strip", "ViewOverlap", "contact_sheet", "denormalized", "strip_of", "strips_sheet", "view_overlap"]
