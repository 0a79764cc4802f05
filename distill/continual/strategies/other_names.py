"""Our strategies → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "anew": "joint cumulative gdumb retrain scratch",
    "bank": "experts adapters multihead pertask halrp ease expandable",
    "first_task": "firstsession fsa aper adam simplecil ranpac",
    "merge": "ties taskarithmetic average fishermerging modelsoup cofima duct",
    "merge_and_go": "branchtuning",
    "sequential": "naive finetune finetuning sgd",
    "stack": "sdlora inflora progressive",
}
