"""Our export targets → what users call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "timm_folder": "timm merged merge folder huggingface hf hf_hub pytorch torch safetensors state_dict pth",
    "onnx": "onnxruntime ort onnx_runtime",
    "pt2": "torch_export exported_program torchscript ts aoti",
    "pte": "executorch xnnpack et",
    "openvino": "ov ir",
    "onnx_int8": "int8 onnx_quantized ort_int8 qdq",
    "pte_int8": "xnnpack_int8 executorch_int8 et_int8",
    "openvino_int8": "ov_int8 nncf",
    "litert": "tflite tensorflow_lite tf_lite",
    "coreml": "mlpackage mlmodel",
    "ncnn": "pnnx",
}
