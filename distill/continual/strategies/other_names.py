"""Our strategies → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "anew": "joint cumulative gdumb retrain scratch",
    "bank": "experts adapters multihead pertask halrp ease expandable lora l2p dualprompt codaprompt packnet",
    "first_task": "firstsession fsa aper adam simplecil ranpac",
    "merge": "ties taskarithmetic average fishermerging modelsoup cofima duct",
    "merge_and_go": "branchtuning",
    "sequential": "naive finetune finetuning sgd",
    "a penalty is a regularizer: strategy sequential with regularizers: [{type: ewc}].": "ewc si l2 mas rwalk",
    "replay is a memory: strategy sequential with memory: {type: keyed}.": "replay er der icarl gem agem rehearsal",
    "the model before the task is a teacher: strategy sequential with teacher: {networks: [{model: previous}]} and "
    "objective kd.": "lwf learningwithoutforgetting",
    "stack": "sdlora inflora olora progressive",
}
