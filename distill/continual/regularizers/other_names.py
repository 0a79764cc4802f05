"""Our regularizers → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "ewc": "elastic elasticweightconsolidation fisher onlineewc oewc rwalk mas",
    "si": "synapticintelligence pathintegral synaptic",
    "l2": "l2sp weightdecay anchor proximal ridge",
}
