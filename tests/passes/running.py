"""Runs whole-model graphs, as traced or token-major, on one packed batch with random weights: before and after a pass can be compared."""

import zlib
from collections.abc import Mapping

import numpy as np

from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.graph import Graph
from friendli_compile.ir.interpreter import interpret

LENGTHS = [5, 17, 11]
LOGIT_ROWS = np.array([32, 4, 21, 7], np.int32)  # any order


def random_params(graph: Graph) -> dict[str, np.ndarray]:
    """Seeded by name, of the order of trained weights: norms near 1, matrices that keep the scale."""
    params = {}
    for value in graph.params:
        noise = np.random.default_rng(zlib.crc32(value.name.encode())).standard_normal(value.dims)
        is_norm = len(value.dims) == 1 and value.name.endswith("weight")
        scale = 0.9 / np.sqrt(min(value.dims[-2:])) if len(value.dims) > 1 else 0.2
        params[value.name] = (noise * scale + (1.0 if is_norm else 0.0)).astype(np.float32)
    return params


def packed_inputs(graph: Graph) -> dict[str, np.ndarray]:
    """Token ids and positions of three sequences, with the rank that the graph wants."""
    num_tokens = sum(LENGTHS)
    vocab_size = min((value.dims[0] for value in graph.params if "embed" in value.name or "wte" in value.name), default=32)
    ids = np.random.default_rng(0).integers(0, vocab_size, num_tokens).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in LENGTHS]).astype(np.int32)
    arrays = {"input_ids": ids, "position_ids": positions, "logit_rows": LOGIT_ROWS}
    return {value.name: arrays[value.name].reshape((1,) * (len(value.dims) - 1) + (-1,)) for value in graph.inputs}


def logits_of(graph: Graph, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """[num_tokens or num_logits, vocab_size]."""
    (logits,) = interpret(graph, packed_inputs(graph), params, BatchDescription.of_lengths(LENGTHS))
    return logits.reshape(-1, logits.shape[-1])


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the largest value; a graph with `logit_rows` gives those rows."""
    if len(found) != len(reference):
        reference = reference[LOGIT_ROWS]
    return float(np.max(np.abs(found - reference)) / (np.max(np.abs(reference)) + 1e-6))
