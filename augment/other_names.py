"""Operations and presets → what torchvision, albumentations, timm and papers call them.

For the error of an unknown name. A sentence with a final period says what to do instead.
"""

from __future__ import annotations

OPERATIONS = {
    "RandomHorizontalFlip": "HorizontalFlip hflip flip fliplr mirror RandomFlip",
    "RandomVerticalFlip": "VerticalFlip vflip flipud",
    "RandomResizedCrop": "rrc RandomSizedCrop random_resize_crop inception_crop RandomResizedCropAndInterpolation "
    "RandomScale RandomIoUCrop crop",
    "PadCrop": "RandomCropPad pad_and_crop PadIfNeeded Pad RandomShift",
    "Resize": "RandomResize ScaleJitter RandomShortestSize",
    "RandomRotation": "Rotate rotation SafeRotate RandomRotate",
    "RandomRotation90": "RandomRotate90 Rotate90 D4",
    "RandomAffine": "Affine ShiftScaleRotate RandomZoomOut",
    "RandomTranslate": "Translate TranslateX TranslateY Shift",
    "RandomShear": "Shear ShearX ShearY",
    "RandomPerspective": "Perspective",
    "Elastic": "ElasticTransform OpticalDistortion GridDistortion GridElasticDeform",
    "RandomGrayscale": "Grayscale ToGray gray grey RandomGray RandomGreyscale Greyscale",
    "ColorJitter": "RandomColorJitter Jitter RandomBrightnessContrast HueSaturationValue RandomPhotometricDistort "
    "color colour ColourJitter RandomToneCurve FancyPCA ToSepia",
    "RandomGaussianBlur": "GaussianBlur AdvancedBlur blur GaussBlur Defocus GlassBlur ZoomBlur",
    "RandomBoxBlur": "BoxBlur AverageBlur",
    "RandomMotionBlur": "MotionBlur",
    "RandomMedianBlur": "MedianBlur",
    "GaussianNoise": "GaussNoise noise RandomNoise ISONoise MultiplicativeNoise ShotNoise",
    "RandomSaltAndPepperNoise": "SaltAndPepper saltpepper ImpulseNoise",
    "RandomSolarize": "Solarize solarization",
    "RandomPosterize": "Posterize",
    "RandomInvert": "Invert InvertImg",
    "RandomBrightness": "Brightness AdjustBrightness",
    "RandomContrast": "Contrast AdjustContrast",
    "RandomSaturation": "Saturation",
    "RandomHue": "Hue",
    "RandomGamma": "Gamma AdjustGamma",
    "Equalize": "HistogramEqualization",
    "RandomClahe": "CLAHE",
    "Sharpness": "RandomAdjustSharpness Sharpen AdjustSharpness UnsharpMask",
    "RandomChannelShuffle": "ChannelShuffle RandomChannelPermutation",
    "RandomChannelDropout": "ChannelDropout",
    "RandomRGBShift": "RGBShift",
    "RandomErasing": "random_erase erasing",
    "Cutout": "CoarseDropout hole DropBlock GridDropout MaskDropout",
    "PixelErasing": "PixelDropout",
    "SpecAugment": "XYMasking FrequencyMasking TimeMasking",
    "JPEG": "ImageCompression JpegCompression",
    "RandAugment": "rand rand-m9-mstd0.5-inc1 randaug",
    "TrivialAugmentWide": "TrivialAugment ta ta_wide",
    "AutoAugment": "aa auto autoaug ImageNetPolicy CIFAR10Policy",
    "AugMix": "augmix-m3-w3",
    "ThreeAugment": "3augment 3a three_aug",
    "MaskBlocks": "MIC MaskedImage RandomPatchMask BlockMask",
    "PatchShuffle": "jigsaw RandomGridShuffle PatchMix",
    "FourierSwap": "fda fourier",
    "leave it out; a recipe may be [], and p or RandomApply skips operations for some images.": "Identity NoOp None",
    "a function of your own is a class in a module: {type: my_module:MyOperation}.": "Lambda",
    "a view is one crop of an image: use RandomResizedCrop.": "FiveCrop TenCrop MultiCrop",
    "mixing the images of a batch is the setting augment.mix.": "Mosaic MixUp RandomMixUp RandomMixUpV2 CutMix "
    "RandomCutMix RandomCutMixV2",
    "Sequential": "Compose AugmentationSequential ImageSequential",
    "OneOf": "RandomChoice OneOrOther",
    "SomeOf": "RandomOrder",
}
"""Ours and kornia's → other names."""

PRESETS = {
    "mocov2": "moco mocov3 byol",
    "deit3": "deit deit_iii",
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
    "CoarseDropout": "Cutout RandomErasing",
    "Rotate": "RandomRotation",
    "Affine": "RandomAffine RandomTranslate RandomShear",
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
