"""Operations and presets → what torchvision, albumentations, timm and papers call them.

For the error of an unknown name. A sentence with a final period says what to do instead.
"""

from __future__ import annotations

OPERATIONS = {
    "RandomHorizontalFlip": "HorizontalFlip hflip flip fliplr FlipLR mirror RandomFlip random_horizontal_flip",
    "RandomVerticalFlip": "VerticalFlip vflip flipud FlipUD",
    "RandomResizedCrop": "rrc RandomSizedCrop random_resize_crop inception_crop RandomResizedCropAndInterpolation "
    "RandomScale crop",
    "PadCrop": "RandomCropPad pad_and_crop PadIfNeeded Pad RandomShift",
    "Resize": "LongestMaxSize SmallestMaxSize RandomResize ScaleJitter",
    "RandomRotation": "Rotate rotation SafeRotate RandomRotate",
    "RandomRotation90": "RandomRotate90 Rotate90 D4",
    "RandomAffine": "Affine ShiftScaleRotate affine",
    "RandomTranslate": "Translate TranslateX TranslateY Shift",
    "RandomShear": "Shear ShearX ShearY",
    "RandomPerspective": "Perspective",
    "Elastic": "ElasticTransform elastic",
    "RandomGrayscale": "Grayscale ToGray gray grey RandomGray RandomGreyscale Greyscale",
    "ColorJitter": "RandomColorJitter Jitter color_jitter RandomBrightnessContrast HueSaturationValue ColorJiggle "
    "RandomPhotometricDistort color colour ColourJitter",
    "RandomGaussianBlur": "GaussianBlur gaussian_blur AdvancedBlur blur GaussBlur",
    "RandomBoxBlur": "BoxBlur AverageBlur",
    "RandomMotionBlur": "MotionBlur",
    "RandomMedianBlur": "MedianBlur",
    "GaussianNoise": "GaussNoise noise RandomNoise ISONoise",
    "RandomSaltAndPepperNoise": "SaltAndPepper saltpepper ImpulseNoise",
    "RandomSolarize": "Solarize solarization",
    "RandomPosterize": "Posterize",
    "RandomInvert": "Invert InvertImg",
    "RandomBrightness": "Brightness AdjustBrightness",
    "RandomContrast": "Contrast AdjustContrast",
    "RandomSaturation": "Saturation",
    "RandomHue": "Hue",
    "RandomGamma": "Gamma AdjustGamma",
    "AutoContrast": "RandomAutocontrast autocontrast",
    "Equalize": "RandomEqualize HistogramEqualization",
    "RandomClahe": "CLAHE",
    "Sharpness": "RandomAdjustSharpness Sharpen AdjustSharpness UnsharpMask",
    "RandomChannelShuffle": "ChannelShuffle RandomChannelPermutation",
    "RandomChannelDropout": "ChannelDropout",
    "RandomRGBShift": "RGBShift",
    "RandomErasing": "random_erase erasing Erasing RandomErase",
    "Cutout": "CoarseDropout cut_out hole DropBlock GridDropout",
    "SpecAugment": "XYMasking FrequencyMasking TimeMasking",
    "JPEG": "ImageCompression JpegCompression RandomJPEG jpeg_compression",
    "RandAugment": "rand rand-m9-mstd0.5-inc1 randaug rand_augment",
    "TrivialAugmentWide": "TrivialAugment ta ta_wide",
    "AutoAugment": "aa auto autoaug ImageNetPolicy CIFAR10Policy",
    "AugMix": "augmix-m3-w3",
    "ThreeAugment": "3augment 3a three_aug",
    "PatchShuffle": "jigsaw RandomGridShuffle PatchMix",
    "FourierSwap": "fda fourier",
    "mixing the images of a batch is the setting augment.mix.": "MixUp RandomMixUp RandomMixUpV2 CutMix RandomCutMix "
    "RandomCutMixV2",
    "views are made as floats and normalized for each network without it, so leave it out.": "ToTensor ToTensorV2 "
    "ToImage ToDtype ConvertImageDtype PILToTensor ToPILImage",
}
"""Ours and kornia's → other names."""

PRESETS = {
    "mocov2": "moco moco_v2 mocov3 moco_v3 byol",
    "deit3": "deit deit_iii deit_3",
    "dino": "dinov2 dinov3 ibot swav",
    "simclr": "simclrv2 barlow barlowtwins vicreg simsiam contrastive",
    "strong": "default imagenet standard heavy medium",
    "weak": "light simple minimal basic none eval test",
    "cifar": "cifar10 cifar100 padcrop",
}
"""Our presets → other names."""

LOADER = {
    "HorizontalFlip": "RandomHorizontalFlip hflip flip",
    "VerticalFlip": "RandomVerticalFlip vflip",
    "GaussianBlur": "RandomGaussianBlur",
    "GaussNoise": "GaussianNoise RandomGaussianNoise",
    "ToGray": "RandomGrayscale Grayscale gray grey",
    "CoarseDropout": "Cutout RandomErasing Erasing",
    "Rotate": "RandomRotation",
    "Affine": "RandomAffine ShiftScaleRotate RandomTranslate RandomShear",
    "Perspective": "RandomPerspective",
    "ImageCompression": "JPEG RandomJPEG JpegCompression",
    "Sharpen": "Sharpness RandomSharpness RandomAdjustSharpness",
    "InvertImg": "RandomInvert Invert",
    "AutoContrast": "RandomAutocontrast",
    "ElasticTransform": "Elastic RandomElasticTransform",
    "MotionBlur": "RandomMotionBlur",
    "MedianBlur": "RandomMedianBlur",
    "ChannelShuffle": "RandomChannelShuffle RandomChannelPermutation",
    "Solarize": "RandomSolarize",
    "Posterize": "RandomPosterize",
    "Equalize": "RandomEqualize",
    "CLAHE": "RandomClahe",
    "RandomBrightnessContrast": "Brightness Contrast RandomBrightness RandomContrast",
}
"""albumentations' transforms → what kornia, torchvision and we call them."""
