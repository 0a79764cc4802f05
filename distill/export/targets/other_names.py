"""Our export targets → what users call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "timm_folder": "timm merged merge folder huggingface hf hf_hub pytorch torch safetensors state_dict pth",
}
