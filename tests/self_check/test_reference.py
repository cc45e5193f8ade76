"""The streamed reference computes what the whole one computes, and holds the weights of one layer at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from friendli_compile.self_check.reference import (
    StreamedReference,
    attention_implementation,
    load_reference,
    observed,
    reference_logits,
    reference_logits_batch,
)
from tests.frontend.architectures import tiny_config

from .compiled import Compiled, compile_tiny

SEQUENCES = [np.arange(3, 3 + length, dtype=np.int32) for length in (4, 9, 6)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Tied embeddings, so that one tensor is needed at both ends."""
    return compile_tiny("llama3", tmp_path_factory.mktemp("llama"), "bf16", num_hidden_layers=3)


def test_streamed_and_padded_is_the_same_as_whole_and_alone(llama: Compiled) -> None:
    rounded = llama.plan.rounded_params
    whole = load_reference(llama.source.folder, llama.traced, rounded)
    streamed = StreamedReference(llama.traced, llama.checkpoint.read, rounded)
    for tokens, logits in zip(SEQUENCES, reference_logits_batch(streamed.model, SEQUENCES), strict=True):
        np.testing.assert_allclose(logits, reference_logits(whole, tokens), atol=1e-5)


def test_only_the_running_layer_has_weights(llama: Compiled) -> None:
    streamed = StreamedReference(llama.traced, llama.checkpoint.read, ())
    layers = {path: streamed.model.get_submodule(path) for path in streamed.layers}
    held: list[list[str]] = []

    def note(path: str, output: torch.Tensor) -> None:
        held.append([name for name, layer in layers.items() if any(not isinstance(p, FakeTensor) for p in layer.parameters())])

    with observed(streamed.model, [f"{path}.mlp" for path in streamed.layers], note):
        reference_logits(streamed.model, SEQUENCES[0])
    assert held == [[path] for path in streamed.layers]
    assert all(isinstance(parameter, FakeTensor) for parameter in streamed.model.parameters())


def test_weights_are_rounded_as_the_artifact_stores_them(llama: Compiled) -> None:
    rounded = llama.plan.rounded_params
    assert rounded and len(rounded) < len(llama.traced.param_shapes)
    params = dict(load_reference(llama.source.folder, llama.traced, rounded).named_parameters())
    for name, tensor in params.items():
        stored = torch.from_numpy(llama.checkpoint.read(name).copy())
        assert torch.equal(tensor, stored.to(torch.bfloat16).to(torch.float32) if name in rounded else stored), name


def test_the_attention_that_adds_its_bias_twice_is_not_the_reference() -> None:
    assert attention_implementation(tiny_config("falcon_alibi")) == "sdpa"
    assert {attention_implementation(tiny_config(name)) for name in ("falcon", "bloom", "llama")} == {"eager"}
