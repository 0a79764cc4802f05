"""Embeddings of texts, kept in a folder by their content: a text that was embedded is not embedded again.

A file has the embeddings of one list of texts by one encoder, and is named by the hash of both. Its own hash is in its
metadata; a damaged file counts as missing.

Shape suffixes: N texts, E width of the embeddings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.files import write_atomic
from distill.text.encoders.base import component_of
from distill.text.names import TextError


def embed(encoder: Any, texts: Sequence[str], store: Path | None = None) -> Tensor:
    """Embeddings [N, E] float32 of texts, normalized.

    Args:
        encoder: settings of a text encoder.
        texts: equal ones are embedded once.
        store: folder of the files; None: nothing is kept.

    Returns:
        One row for each text.

    Raises:
        TextError: the encoder is not installed, or gives other than finite rows of length 1.
    """
    cls = component_of(encoder)
    cls.check(encoder)
    distinct = sorted(set(texts))
    numbers = {text: number for number, text in enumerate(distinct)}
    rows = torch.tensor([numbers[text] for text in texts], dtype=torch.long)
    digest = hashlib.sha256(json.dumps([cls.identity(encoder), distinct]).encode()).hexdigest()[:16]
    path = None if store is None else store / f"embeddings-{digest}.safetensors"
    kept = None if path is None else _read(path)
    if kept is None or len(kept) != len(distinct):
        kept = _checked(cls(encoder).encode(distinct), len(distinct), encoder.type)
        if path is not None:
            write_atomic(path, safetensors.torch.save({"embeddings": kept}, {"sha256": _hash(kept)}))
    return kept[rows]


def _checked(embeddings_NE: Tensor, count: int, name: str) -> Tensor:
    if embeddings_NE.ndim != 2 or len(embeddings_NE) != count:
        raise TextError(
            f"text encoder {name}: {count} texts gave a tensor of shape {tuple(embeddings_NE.shape)}, expected "
            f"({count}, width)"
        )
    embeddings_NE = embeddings_NE.detach().float().cpu().clone()
    lengths = embeddings_NE.norm(dim=1)
    if not embeddings_NE.isfinite().all() or ((lengths - 1).abs() > 1e-3).any():
        raise TextError(f"text encoder {name}: embeddings must be finite and of length 1")
    return embeddings_NE


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            embeddings_NE, expected = file.get_tensor("embeddings"), (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError):
        return None
    return embeddings_NE if _hash(embeddings_NE) == expected else None


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
