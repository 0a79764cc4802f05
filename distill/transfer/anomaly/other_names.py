"""Our methods → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "mahalanobis": "gaussian padim dfm dfkde ocsvm",
    "patchcore": "patch_core knn spade memorybank efficientad",
}
