"""States as a file holds them."""

from __future__ import annotations

import io
from typing import Any

import torch


def to_bytes(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(state: bytes) -> Any:
    return torch.load(io.BytesIO(state), weights_only=True)
