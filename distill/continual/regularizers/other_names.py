"""Our regularizers → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "ewc": "elastic elasticweightconsolidation fisher onlineewc oewc rwalk mas",
    "si": "synapticintelligence pathintegral synaptic",
    "the model before the task is a teacher: teacher: {networks: [{model: previous}]} and objective kd.": "lwf "
    "distillation",
    "l2": "l2sp weightdecay anchor proximal ridge",
}
