"""Our rules of task inference → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "ncm": "nme nearestmean prototype prototypes centroid cosine",
    "mahalanobis": "slda lda gaussian",
    "max_logit": "maxsoftmax msp maximumlogit confidence softmax max",
    "entropy": "uncertainty minentropy",
}
