"""Our heads → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "ncm": "cosine knn nme nearestmean nearestmeanofexemplars nearestprototype prototype prototypes simplecil centroid",
    "slda": "lda deepslda streaminglda lineardiscriminant discriminant",
    "ridge": "acil leastsquares rls recursiveleastsquares ridgeregression linear lsq fc mlp logistic",
    "random_ridge": "ranpac rp randomprojection elm extremelearningmachine randomfeatures",
    "fecam": "mahalanobis gaussian qda",
}
