"""The reference of `attn.paged`: causal attention of each sequence over its whole history.

A `BatchDescription` says where the sequences of a packed batch begin (`cu_seqlens`) and carries their history of keys and values, so
that a decode step can be interpreted: run the prompt, then single tokens, with the same description object.

    rows of the batch:  | seq 0 ......... | seq 1 .. | seq 2 .... |      cu_seqlens = [0, 9, 12, 18]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .graph import GraphError

Array = np.ndarray


@dataclass
class BatchDescription:
    """The sequences of a step. `history[(seq, kv_layer)]` is (k [n, Hkv, Dk], v [n, Hkv, Dv]), extended by every run."""

    cu_seqlens: Array  # [num_seqs + 1] i32, rows of sequence s are cu_seqlens[s] … cu_seqlens[s+1]
    keep_history: bool = False
    history: dict[tuple[int, int], tuple[Array, Array]] = field(default_factory=dict)

    @staticmethod
    def of_lengths(lengths: list[int], keep_history: bool = False) -> BatchDescription:
        return BatchDescription(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), keep_history)

    def step(self, lengths: list[int]) -> None:
        """The next step brings so many rows per sequence."""
        self.cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def paged_attention(operands: tuple[Any, ...], attrs: Mapping[str, Any], batch: BatchDescription) -> Array:
    """q [T, Hq, Dk], k [T, Hkv, Dk], v [T, Hkv, Dv] → [T, Hq, Dv]; as traced [1, H, T, D] → [1, T, H, D]."""
    q, k, v, sinks, slopes = operands
    if q.ndim == 4:
        token_major = tuple(x[0].transpose(1, 0, 2) for x in (q, k, v))
        return paged_attention((*token_major, sinks, slopes), attrs, batch)[None]
    if batch.cu_seqlens[-1] != q.shape[0]:
        raise GraphError(f"the batch description ends at row {batch.cu_seqlens[-1]}, the queries have {q.shape[0]} rows")
    result = np.empty((q.shape[0], q.shape[1], v.shape[2]), np.float32)
    for seq in range(len(batch.cu_seqlens) - 1):
        rows = slice(batch.cu_seqlens[seq], batch.cu_seqlens[seq + 1])
        keys, values = _with_history(k[rows], v[rows], batch, (seq, attrs["kv_layer"]))
        result[rows] = _attend(q[rows], keys, values, sinks, slopes, attrs)
    return result


def _with_history(k: Array, v: Array, batch: BatchDescription, key: tuple[int, int]) -> tuple[Array, Array]:
    if key in batch.history:
        old_k, old_v = batch.history[key]
        k, v = np.concatenate([old_k, k]), np.concatenate([old_v, v])
    if batch.keep_history:
        batch.history[key] = (k, v)
    return k, v


def _attend(q: Array, k: Array, v: Array, sinks: Array | None, slopes: Array | None, attrs: Mapping[str, Any]) -> Array:
    """One sequence: the queries are the last of its positions."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(attrs["scale"])
    if attrs["softcap"]:
        cap = np.float32(attrs["softcap"])
        scores = cap * np.tanh(scores / cap)
    i = np.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None]
    j = np.arange(k.shape[0])[None, :]
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (j - i).astype(np.float32)
    first = np.zeros_like(i)
    if attrs["window"]:
        first = np.maximum(first, i - attrs["window"] + 1)
    if attrs["chunk"]:
        first = np.maximum(first, i // attrs["chunk"] * attrs["chunk"])
    scores = np.where((j <= i) & (j >= first), scores, np.float32(-np.inf))
    top = np.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    e = np.exp(scores - top)
    total = np.sum(e, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    return np.einsum("hqk,khd->qhd", e / total, v)
