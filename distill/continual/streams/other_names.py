"""Our streams → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "classes": "classincremental task taskincremental til splitcifar splitcifar100 splitmnist splitimagenet "
    "class cil splits split newclasses nc ncbenchmark",
    "domains": "domainincremental domain dil permuted rotated permutedmnist rotatedmnist newinstances ni",
    "images": "dataincremental data instances instanceincremental parts chunks",
    "manifest": "file csv json filelist paths",
    "online": "siblurry iblurry blurry taskfree generalcontinual streaming",
    "superclasses": "superclass coarse hierarchy hierarchical supercategories",
}
