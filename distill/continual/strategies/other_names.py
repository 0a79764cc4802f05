"""What other libraries and papers call the strategies; see :func:`augment.base.suggestions.table`."""

OTHER_NAMES = {
    "sequential": "naive finetune finetuning fine_tuning sgd continued",
    "bank": "experts adapters separate multihead per_task expandable ease halrp",
    "merge_and_go": "branch_tuning branchtuning merge_after_task",
    "first_task": "first_session fsa aper adam simplecil ranpac slda",
    "stack": "sd_lora sdlora inflora infLoRA progressive",
    "merge": "ties task_arithmetic average fisher_merging model_soup cofima duct",
    "anew": "joint cumulative gdumb retrain scratch",
}
