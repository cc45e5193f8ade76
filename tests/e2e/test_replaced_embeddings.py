"""Vectors in place of embeddings give the numbers of transformers' `inputs_embeds`, however the prompt is cut into steps."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from friendli_runtime.artifact import Artifact
from friendli_runtime.engine import Engine, TokenOutput
from friendli_runtime.executor import load_executor
from friendli_runtime.sampling import ReplacedEmbeddings, SamplingParams
from frontend.architectures import VOCAB_SIZE, tiny_model

from .compiled import compile_traced

NUM_TOKENS = 6


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> list[TokenOutput]:
    outputs: list[TokenOutput] = []
    is_done = threading.Event()

    def sink(new: list[TokenOutput]) -> None:
        outputs.extend(new)
        if any(output.finish_reason for output in new):
            is_done.set()

    engine.submit(prompt, params, sink)
    assert is_done.wait(60)
    return outputs


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_and_logprobs_are_those_of_inputs_embeds(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    artifact = Artifact.open(compile_traced(name, tmp_path, dtype="fp32", self_check=False).artifact)
    rng = np.random.default_rng(3)
    prompt = rng.integers(3, VOCAB_SIZE, 21).tolist()
    positions = [0, 4, 5, 6, 13, 20]
    table = model.get_input_embeddings().weight.detach()
    vectors = rng.standard_normal((len(positions), table.shape[1])).astype(np.float32) * float(table.std()) * 2
    embeds = table[torch.tensor([prompt])].clone()
    embeds[0, positions] = torch.from_numpy(vectors)
    replaced = ReplacedEmbeddings(tuple(positions), tuple(vectors.ravel().tolist()))
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, logprobs=0, replaced_embeddings=replaced)
    executor = load_executor(artifact, max_num_tokens=8, max_num_logits=4, num_blocks=16)
    with Engine(executor, max_num_seqs=4, max_num_tokens=8, max_context_len=64, vocab_size=VOCAB_SIZE) as engine:
        plain = answer(engine, prompt, params.with_(replaced_embeddings=None))
        outputs = answer(engine, prompt, params)
    for output in outputs:
        with torch.no_grad():
            logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].double()
        assert output.token_id == int(logits.argmax())
        assert output.logprob == pytest.approx(float(torch.log_softmax(logits, 0).max()), abs=2e-4)
        embeds = torch.cat([embeds, table[torch.tensor([[output.token_id]])]], dim=1)
    assert abs(plain[0].logprob - outputs[0].logprob) > 1e-3
