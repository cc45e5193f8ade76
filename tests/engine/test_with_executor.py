"""The engine on the real executor: a small decoder's tokens are those of the numpy interpreter, and the same bits in every setting."""

import random
import threading

import numpy as np
import pytest
from artifact.tiny import tiny_plan, write_tiny_artifact
from friendli_runtime.artifact import Artifact
from friendli_runtime.engine import Engine, TokenOutput
from friendli_runtime.executor import load_executor
from friendli_runtime.sampling import InvalidSamplingParams, ReplacedEmbeddings, SamplingParams
from plan.graphs import VOCAB, decoder

from friendli_compile.artifact.layouts import round_to_bf16
from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.interpreter import interpret

CONTEXT = 64
SETTINGS = [
    {"num_threads": 1, "max_num_tokens": 64, "max_num_seqs": 8, "num_blocks": 64},
    {"num_threads": 2, "max_num_tokens": 9, "max_num_seqs": 6, "num_blocks": 64},
    {"num_threads": 1, "max_num_tokens": 16, "max_num_seqs": 4, "num_blocks": 6},  # preempts
    {"num_threads": 1, "max_num_tokens": 3, "max_num_seqs": 1, "num_blocks": 4},  # one after the other, three rows a step
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return Artifact.open(write_tiny_artifact(tmp_path_factory.mktemp("engine") / "tiny"))


def run_all(
    artifact: Artifact, setting: dict, requests: list[tuple[list[int], SamplingParams]], **options
) -> tuple[list[list[TokenOutput]], dict]:
    """The outputs of each request in order of arrival, and the engine's stats at the end."""
    executor = load_executor(
        artifact,
        num_threads=setting["num_threads"],
        max_num_tokens=setting["max_num_tokens"],
        max_num_logits=setting.get("max_num_logits", setting["max_num_seqs"]),
        num_blocks=setting["num_blocks"],
        kv_dtype="f32",
    )
    outputs: list[list[TokenOutput]] = [[] for _ in requests]
    is_done = threading.Semaphore(0)

    def sink_of(request_idx: int):
        def sink(new: list[TokenOutput]) -> None:
            outputs[request_idx] += new
            for output in new:
                if output.finish_reason:
                    is_done.release()

        return sink

    engine = Engine(
        executor,
        max_num_seqs=setting["max_num_seqs"],
        max_num_tokens=setting["max_num_tokens"],
        max_context_len=CONTEXT,
        vocab_size=VOCAB,
        **options,
    )
    for request_idx, (prompt, params) in enumerate(requests):  # before the start: the steps do not depend on the speed of the machine
        engine.submit(prompt, params, sink_of(request_idx))
    with engine:
        for _ in range(sum(params.n for _, params in requests)):
            assert is_done.acquire(timeout=60)
        return outputs, engine.stats()


def random_requests(seed: int, num_requests: int) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(seed)
    return [
        (
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))],
            SamplingParams(
                temperature=rng.choice([0.0, 1.0]), seed=index, n=rng.choice([1, 1, 2]), logprobs=2, max_tokens=rng.randint(1, 24)
            ),
        )
        for index in range(num_requests)
    ]


def bits_by_sample(outputs: list[TokenOutput]) -> dict[int, list[tuple]]:
    """(token, log-probability, most likely tokens) of each sample in order."""
    samples: dict[int, list[tuple]] = {}
    for output in outputs:
        samples.setdefault(output.sample_idx, []).append((output.token_id, output.logprob, output.top_logprobs))
    return samples


def test_greedy_tokens_and_logprobs_are_those_of_the_interpreter(artifact):
    plan, params = tiny_plan()
    rounded = {name: round_to_bf16(array) if name in plan.rounded_params else array for name, array in params.items()}
    graph, prompt = decoder(), [5, 9, 2, 33, 17]
    (outputs,), _ = run_all(artifact, SETTINGS[0], [(prompt, SamplingParams(temperature=0.0, max_tokens=12, logprobs=0))])
    tokens = list(prompt)
    for output in outputs:
        inputs = {
            "input_ids": np.array(tokens, np.int32),
            "position_ids": np.arange(len(tokens), dtype=np.int32),
            "logit_rows": np.array([len(tokens) - 1], np.int32),
        }
        (logits,) = interpret(graph, inputs, rounded, BatchDescription.of_lengths([len(tokens)]))
        shifted = logits[0].astype(np.float64) - logits[0].max()
        assert output.token_id == int(np.argmax(shifted))
        assert abs(output.logprob - (shifted[output.token_id] - np.log(np.exp(shifted).sum()))) < 1e-4
        tokens.append(output.token_id)


def test_tokens_and_logprobs_are_the_same_bits_for_every_batch_chunking_thread_count_and_preemption(artifact):
    requests = random_requests(3, 24)
    results = [run_all(artifact, setting, requests) for setting in SETTINGS]
    assert results[2][1]["num_preemptions"] > 0
    together, *others = ([bits_by_sample(outputs) for outputs in result] for result, _ in results)
    assert all(other == together for other in others)
    alone = [bits_by_sample(run_all(artifact, SETTINGS[0], [request])[0][0]) for request in requests[:6]]
    assert alone == together[:6]


def test_a_prefix_that_is_known_changes_no_bit_of_what_follows(artifact):
    rng = random.Random(5)
    head = [rng.randrange(VOCAB) for _ in range(40)]
    requests = [
        (
            head[: rng.randint(1, 40)] + [rng.randrange(VOCAB) for _ in range(rng.randint(0, 9))],
            SamplingParams(temperature=1.0, seed=index, logprobs=2, max_tokens=12),
        )
        for index in range(20)
    ]
    setting = {"num_threads": 2, "max_num_tokens": 16, "max_num_seqs": 3, "num_blocks": 12}
    with_cache, stats = run_all(artifact, setting, requests)
    without, no_stats = run_all(artifact, setting, requests, has_prefix_cache=False)
    assert stats["num_cached_tokens"] > 200 and no_stats["num_cached_tokens"] == 0
    assert [bits_by_sample(outputs) for outputs in with_cache] == [bits_by_sample(outputs) for outputs in without]


def test_replaced_embeddings_are_those_of_the_tokens_whose_rows_they_are(artifact):
    """The rows of the table as vectors: then the answer is that to the other prompt, bit for bit, and known prompts do not matter."""
    _, params = tiny_plan()
    table = round_to_bf16(params["embed.weight"])
    rng = random.Random(11)
    requests, meant = [], []
    for index in range(16):
        prompt = [5] * rng.randint(1, 40)
        positions = sorted(rng.sample(range(len(prompt)), rng.randint(1, len(prompt))))
        others = [rng.randrange(VOCAB) for _ in positions]
        changed = list(prompt)
        for position, token in zip(positions, others, strict=True):
            changed[position] = token
        asked = SamplingParams(temperature=1.0, seed=index, n=1 + index % 2, logprobs=2, max_tokens=rng.randint(1, 16))
        replaced = ReplacedEmbeddings(tuple(positions), tuple(table[others].ravel().tolist()))
        requests += [(prompt, asked), (prompt, asked.with_(replaced_embeddings=replaced))]
        meant.append((changed, asked))
    expected = [bits_by_sample(outputs) for outputs in run_all(artifact, SETTINGS[0], meant)[0]]
    for setting in SETTINGS:
        outputs, _ = run_all(artifact, setting, requests)
        assert [bits_by_sample(one) for one in outputs[1::2]] == expected


@pytest.mark.parametrize(("positions", "num_values"), [((0,), 1), ((3, 1), 2), ((1, 1), 2), ((4,), 1), ((-1,), 1), ((0,), 0), ((0,), 2)])
def test_embeddings_that_do_not_fit_are_refused(artifact, positions, num_values):
    executor = load_executor(artifact, max_num_tokens=16, max_num_logits=4, num_blocks=8)
    engine = Engine(executor, max_num_seqs=4, max_num_tokens=16, max_context_len=CONTEXT, vocab_size=VOCAB)
    width = engine.embedding_width
    assert width > 0
    values = (float("nan"),) * width if positions == (0,) and num_values == 1 else (0.5,) * (width * num_values)
    params = SamplingParams(max_tokens=1, replaced_embeddings=ReplacedEmbeddings(positions, values))
    with pytest.raises(InvalidSamplingParams, match="replaced_embeddings"):
        engine.submit([1, 2, 3, 4], params, lambda outputs: None)
    engine.shutdown()


def test_guessed_tokens_change_no_bit_of_the_answer(artifact):
    rng = random.Random(8)
    requests = []
    for index in range(12):
        run = [rng.randrange(VOCAB) for _ in range(4)]
        requests.append((run * 4, SamplingParams(temperature=0.0 if index % 2 else 0.3, seed=index, logprobs=2, max_tokens=30)))
    setting = {"num_threads": 2, "max_num_tokens": 24, "max_num_seqs": 4, "num_blocks": 20}
    plain, _ = run_all(artifact, setting, requests)
    guessed, stats = run_all(artifact, {**setting, "max_num_logits": 16}, requests, ngram_size=3)
    assert stats["num_accepted_tokens"] > 20, stats
    assert [bits_by_sample(outputs) for outputs in guessed] == [bits_by_sample(outputs) for outputs in plain]


def test_blocks_are_all_free_after_cancelled_requests(artifact):
    executor = load_executor(artifact, num_threads=1, max_num_tokens=8, max_num_logits=4, num_blocks=16, kv_dtype="f32")
    is_done = threading.Event()
    with Engine(executor, max_num_seqs=4, max_num_tokens=8, max_context_len=CONTEXT, vocab_size=VOCAB) as engine:
        ids = [engine.submit([1] * 30, SamplingParams(seed=0), lambda _: None) for _ in range(3)]
        for request_id in ids:
            engine.cancel(request_id)
        engine.submit([1], SamplingParams(seed=0, max_tokens=2), lambda outputs: is_done.set() if outputs[-1].finish_reason else None)
        assert is_done.wait(60)
        assert engine.stats()["num_used_blocks"] == 0


def test_an_executor_bound_too_small_is_refused_by_name(artifact):
    executor = load_executor(artifact, num_threads=1, max_num_tokens=8, max_num_logits=4, num_blocks=16, kv_dtype="f32")
    for name, value in (("max_num_tokens", 9), ("max_num_seqs", 5), ("max_context_len", 65), ("vocab_size", VOCAB + 1)):
        options = {"max_num_seqs": 4, "max_num_tokens": 8, "max_context_len": CONTEXT, "vocab_size": VOCAB, name: value}
        with pytest.raises(ValueError, match=f"{name} is {value}, but the executor is bound for"):
            Engine(executor, **options)
