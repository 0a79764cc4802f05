"""Our keys and values → what other libraries call them, for suggestions; see :mod:`augment.base.suggestions`.

The same other name may belong to several of ours; the first one that exists at the place of the unknown key counts.
"""

from __future__ import annotations

OTHER_NAMES = {
    # deltas, as peft calls them
    "rank": "r lora_r lora_rank dim lora_dim bottleneck_dim",
    "alpha": "lora_alpha scaling network_alpha",
    "sites": "target_modules targets target layers target_layers modules module_names include layers_to_transform",
    "exclude": "exclude_modules exclude_layers skip ignore",
    "ranks": "rank_pattern rank_allocation target_r",
    "deltas": "peft peft_config adapters lora delta",
    # training, as timm, Lightning and transformers call it
    "lr": "learning_rate base_lr max_lr initial_lr blr eta",
    "weight_decay": "wd l2 l2_penalty decay_rate",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs nb_epochs total_epochs",
    "batch_size": "bs batch per_device_train_batch_size train_batch_size mini_batch_size minibatch samples_per_gpu",
    "optimizer": "optim opt solver",
    "schedule": "scheduler lr_scheduler sched lr_schedule lr_scheduler_type",
    "warmup": "warmup_epochs warmup_steps warmup_ratio num_warmup_steps linear_warmup",
    "milestones": "decay_milestones lr_steps decay_epochs",
    "gamma": "decay_factor lr_gamma",
    "final": "min_lr eta_min final_lr",
    "clip_norm": "gradient_clip_val grad_clip clip_grad max_grad_norm gradient_clipping clip_grad_norm max_norm",
    "precision": "amp fp16 bf16 mixed_precision autocast",
    "devices": "gpus num_gpus world_size n_gpu gpu num_devices nproc_per_node",
    "accelerator": "device backend",
    "ema": "model_ema ema_decay ema_momentum",
    "early_stop": "early_stopping patience",
    "keep": "save_best load_best save_best_only load_best_model_at_end",
    "validate_every": "check_val_every_n_epoch eval_every val_interval eval_interval",
    "log_every": "log_every_n_steps log_interval logging_steps",
    "head_lr_factor": "head_lr head_lr_multiplier head_lr_mult",
    # networks
    "model": "arch architecture backbone model_name name timm_model",
    "network": "backbone model encoder arch architecture",
    "networks": "network model models teachers ensemble",
    "checkpoint": "weights ckpt ckpt_path path checkpoint_path pretrained_path initial_checkpoint resume "
    "load_from file",
    "size": "img_size image_size input_size resolution crop_size imgsz",
    "prefix": "checkpoint_prefix key_prefix checkpoint_key state_dict_key",
    "mean": "image_mean norm_mean",
    "std": "image_std norm_std",
    "delta": "adapter peft delta_path lora",
    # the experiment
    "objectives": "losses loss criterion criteria objective distillation distiller kd",
    "data": "dataset datasets dataloader datamodule",
    "source": "dataset kind format",
    "root": "path dir data_dir data_path folder directory root_dir img_dir",
    "workers": "num_workers dataloader_num_workers n_workers",
    "seed": "random_seed manual_seed rng_seed random_state",
    "output": "output_dir out out_dir save_dir log_dir work_dir run_dir results_dir default_root_dir",
    "augment": "augmentation augmentations transforms transform aug data_augmentation",
    "val_fraction": "val_split valid_fraction validation_split val_ratio val_size validation_fraction",
    "test_fraction": "test_split test_ratio test_size",
    "labels_per_class": "shots n_shots k_shot num_labels_per_class n_labeled",
    # objectives
    "temperature": "t tau temp kd_t softmax_temperature kd_temperature",
    "weight": "coefficient coef lambda loss_weight scale alpha",
    "label_smoothing": "smoothing label_smooth",
    # operations
    "p": "prob probability",
    "num_ops": "n num_layers n_ops",
    "magnitude": "m mag level",
    # values
    "adamw": "adam adamax nadam lamb radam adafactor lion muon rmsprop torch.optim.adamw adamw_torch adamw8bit",
    "sgd": "momentum nesterov sgdm lars",
    "cosine": "cosine_annealing cosineannealinglr cosine_decay onecycle onecyclelr cosine_with_restarts "
    "cosineannealingwarmrestarts linear linearlr poly polynomial polynomiallr",
    "steps": "step multistep multisteplr steplr step_lr piecewise plateau reducelronplateau exponential exponentiallr",
    "constant": "none fixed flat constantlr",
    "float32": "fp32 32 full single 32-true float",
    "bfloat16": "bf16 bf16-mixed fp16 float16 16-mixed half amp mixed",
    "cuda": "gpu nvidia cuda:0",
    "full": "whole all finetune fine_tune full_finetune unfrozen",
}
