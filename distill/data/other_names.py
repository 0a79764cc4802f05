"""Our sources → what other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "folder": "imagefolder images dir directory local path files datasetfolder disk imagenet imagenet1k ilsvrc "
    "tinyimagenet npy numpy array arrays kaggle roboflow",
    "huggingface": "hf hfds hub datasets parquet hf_datasets arrow load_dataset",
    "torchvision": "tv torch cifar cifar10 cifar100 mnist fashionmnist svhn stl10 flowers102 food101 pets "
    "oxfordiiitpet",
    "timm": "tfds wds webdataset tar tfrecord torch_datasets",
    "a table comes as Parquet with an image column (type: huggingface, data_files), or its images as a folder for each "
    "class (type: folder).": "csv tsv json jsonl table pandas dataframe polars excel manifest metadata lmdb sqlite",
    "unpack the archive and use type: folder.": "zip rar 7z archive",
    "save each image as .npy or PNG, in a folder for each class, and use type: folder.": "npz hdf5 h5 mat memmap "
    "tensor tensors tensordataset",
    "coco": "coco_json cocodetection instances boxes detection",
    "voc": "pascal pascalvoc vocdetection xml",
    "augmented": "shifted operations recipe corrupted",
    "digits": "sklearn toy scikitlearn load_digits",
}
