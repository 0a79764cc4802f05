from distill.training.lazy_torchmetrics import register

register()  # before any module here imports Lightning
