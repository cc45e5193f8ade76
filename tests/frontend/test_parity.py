"""The imported graph of every architecture, interpreted on a packed batch, against transformers one sequence at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from friendli_compile.frontend.rope_tables import freeze_rope_tables
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.interpreter import interpret
from frontend.architectures import ARCHITECTURES, VARIANTS, VOCAB_SIZE, tiny_config, tiny_model, traced

TOLERANCE = 2e-4
LENGTHS = [5, 17, 11]
# Between them these need every translation and every special case of the frontend. The others run with `pytest -m slow`, and all of
# them go through the compiled artifact in the end-to-end tests.
CHOSEN = [
    "llama", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "falcon", "mpt", "bloom", "cohere", "olmo", "glm4", "mixtral",
    "qwen2_moe", "gpt_oss", "deepseek_v3", "falcon_alibi", "mpt_clipped", "gpt_neo", "llama4_text", "deepseek_v2",
]  # fmt: skip
OTHERS = [name for name in {**ARCHITECTURES, **VARIANTS} if name not in CHOSEN]


def params_of(model: PreTrainedModel) -> Callable[[str], np.ndarray]:
    state = model.state_dict()
    return lambda name: state[name].numpy()


def packed(lengths: list[int], seed: int = 3) -> tuple[list[torch.Tensor], dict[str, np.ndarray]]:
    """Random sequences `[1, length]`, and the same as one packed batch."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(3, VOCAB_SIZE, (1, length), generator=generator) for length in lengths]
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    return sequences, {"input_ids": torch.cat(sequences, 1).numpy().astype(np.int32), "position_ids": positions.astype(np.int32)}


def largest_error(model: PreTrainedModel, traced_model: TracedModel, lengths: list[int]) -> float:
    sequences, inputs = packed(lengths)
    with torch.no_grad():
        expected = torch.cat([model(input_ids=tokens, use_cache=False).logits[0] for tokens in sequences]).numpy()
    (logits,) = interpret(traced_model.graph, inputs, params_of(model), BatchDescription.of_lengths(lengths))
    assert logits.shape == (1, *expected.shape)
    return float(np.abs(logits[0] - expected).max())


@pytest.mark.parametrize("name", CHOSEN)
def test_a_packed_batch_gives_the_logits_of_transformers_per_sequence(name: str) -> None:
    assert largest_error(tiny_model(name), traced(name), LENGTHS) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_packed_batch_of_every_other_model_gives_the_logits_of_transformers(name: str) -> None:
    assert largest_error(tiny_model(name), traced(name), LENGTHS) <= TOLERANCE


def test_batches_of_one_token_and_of_one_sequence_work_although_the_trace_had_more() -> None:
    model = tiny_model("gemma2")
    assert largest_error(model, traced("gemma2"), [1]) <= TOLERANCE
    assert largest_error(model, traced("gemma2"), [40]) <= TOLERANCE


def test_the_comparison_sees_a_missing_window_and_a_missing_sequence_boundary() -> None:
    """Controls: the tolerance is far below what a mistake does."""
    model = tiny_model("gemma2")
    wide = trace_model(tiny_config("gemma2", layer_types=["full_attention"] * 2))
    assert largest_error(model, wide, LENGTHS) > 100 * TOLERANCE
    inputs = packed(LENGTHS)[1]
    one, several = (
        interpret(traced("gemma2").graph, inputs, params_of(model), BatchDescription.of_lengths(lengths))[0] for lengths in ([33], LENGTHS)
    )
    assert np.abs(one - several).max() > 100 * TOLERANCE


def test_a_long_context_gets_the_long_rope_table_of_transformers() -> None:
    """Sequences beyond the short table: transformers takes the long one for them."""
    traced_model = trace_model(tiny_config("phi3"), max_context_len=512)
    assert traced_model.max_context_len == 512 and "long table" in traced_model.notes[0]
    assert largest_error(tiny_model("phi3"), traced_model, [70, 90]) <= TOLERANCE


def test_the_reference_with_frozen_rope_tables_agrees_for_every_length() -> None:
    model = tiny_model("phi3")
    freeze_rope_tables(model, 512)
    assert largest_error(model, trace_model(tiny_config("phi3"), max_context_len=512), [5, 90]) <= TOLERANCE
