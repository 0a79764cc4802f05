"""Our sources → what other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "folder": "imagefolder images dir directory local path files datasetfolder disk",
    "huggingface": "hf hfds hub datasets parquet hf_datasets arrow load_dataset",
    "torchvision": "tv torch cifar cifar10 cifar100 mnist fashionmnist svhn stl10 flowers102 food101 pets "
    "oxfordiiitpet",
    "timm": "tfds wds webdataset tar tfrecord torch_datasets",
    "digits": "sklearn toy scikitlearn load_digits",
}
