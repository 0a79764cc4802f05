"""Object detection with a student as backbone: torchvision's detectors on a pyramid of timm's maps, one file each."""
