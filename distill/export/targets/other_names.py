"""Our export targets → what users call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "timm_folder": "timm merged merge folder huggingface hf hf_hub pytorch torch safetensors state_dict pth",
    "onnx": "onnxruntime ort onnx_runtime",
    "pt2": "torch_export exported_program torchscript ts aoti",
    "pte": "executorch xnnpack et",
    "openvino": "ov ir",
    "litert": "tflite tensorflow_lite tf_lite",
    "coreml": "core_ml mlpackage mlmodel",
    "ncnn": "pnnx",
}
