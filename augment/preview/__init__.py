"""Previews: a contact sheet of views, a strip per operation, and the overlap of the two views."""

from augment.preview.overlap import ViewOverlap, view_overlap
from augment.preview.sheet import contact_sheet, denormalized
from augment.preview.strips import Strip, strip_of, strips_sheet

__all__ = ["Strip", "ViewOverlap", "contact_sheet", "denormalized", "strip_of", "strips_sheet", "view_overlap"]
