"""The engine on the hash model: every sample gets the tokens it would get alone, whatever else happens."""

import random
from dataclasses import replace

import numpy as np
import pytest
from friendli_runtime import _core
from friendli_runtime.sampling import SamplingParams

from .hash_model import HashModel, ManualEngine, expected_answer, expected_prompt_logprobs

EOS = 3


def random_params(rng: random.Random, room: int) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.5]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.9]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        n=rng.choice([1, 1, 1, 2, 3]),
        seed=rng.randrange(2**32),
        max_tokens=rng.choice([None, rng.randint(1, room)]),
        eos_token_ids=rng.choice([(EOS,), (EOS, 5, 7), ()]),
        stop_token_sequences=rng.choice([(), ((1,), (2, 4))]),
        forced_output_tokens=tuple(rng.randrange(24) for _ in range(rng.choice([0, 0, min(3, room)]))),
        prompt_logprobs=rng.choice([None, None, None, 0, 2]),
    )


def assert_answers_are_those_of_solo_runs(engine: ManualEngine, requests: dict, cancelled: set) -> None:
    for (request_id, sample_idx), answer in engine.answers.items():
        prompt, params = requests[request_id]
        alone = expected_answer(prompt, params, sample_idx, vocab_size=engine.model.vocab_size, max_total_len=engine.core.max_total_len)
        if answer.finish_reason == "cancelled":
            assert (request_id, sample_idx) in cancelled
            assert answer.tokens == alone.tokens[: len(answer.tokens)]
        else:
            assert (answer.tokens, answer.finish_reason) == (alone.tokens, alone.finish_reason)
    for request_id, (prompt, params) in requests.items():
        scores = engine.prompt_logprobs.get(request_id)
        if params.prompt_logprobs is None or len(prompt) == 1:
            assert scores is None
        elif scores is not None or any(answer.tokens for (other_id, _), answer in engine.answers.items() if other_id == request_id):
            assert scores == expected_prompt_logprobs(prompt, params.prompt_logprobs, engine.model.vocab_size)


@pytest.mark.parametrize("seed", range(250))
def test_random_request_streams_give_each_sample_its_own_tokens_and_return_every_block(seed):
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 4])
    model = HashModel(num_blocks=rng.randint(24, 40) // block_size, block_size=block_size)
    max_num_seqs = rng.randint(1, 6)
    engine = ManualEngine(
        model, max_num_seqs=max_num_seqs, max_num_tokens=max_num_seqs + rng.randint(0, 8), max_context_len=rng.randint(16, 30)
    )
    requests, cancelled = {}, set()
    total_len = engine.core.max_total_len

    def cancel_one() -> None:
        request_id = rng.choice(list(requests))
        if rng.random() < 0.5:
            core.cancel(request_id)
            cancelled.update((request_id, sample_idx) for sample_idx in range(requests[request_id][1].n))
        else:
            core.cancel_sample(request_id, 0)
            cancelled.add((request_id, 0))

    core = engine.core
    model.during_forward = lambda: cancel_one() if rng.random() < 0.05 else None
    for _ in range(rng.randint(2, 9)):
        prompt_len = rng.randint(1, total_len - 1)
        prompt = [rng.randrange(model.vocab_size) for _ in range(prompt_len)]
        params = random_params(rng, total_len - prompt_len)
        requests[engine.submit(prompt, params)] = (prompt, params)
        for _ in range(rng.choice([0, 0, 1, 3, 8])):
            engine.step()
        if rng.random() < 0.15:
            cancel_one()
    engine.run()
    model.during_forward = None  # it refers to the engine that owns the model
    assert all(answer.finish_reason is not None for answer in engine.answers.values())
    assert (engine.stat("num_used_blocks"), engine.stat("num_running"), engine.stat("num_waiting")) == (0, 0, 0)
    assert_answers_are_those_of_solo_runs(engine, requests, cancelled)


def test_prompts_longer_than_a_step_are_computed_in_chunks_beside_the_decoding_ones():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=6, max_context_len=64)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    requests = {engine.submit(prompt, params): (prompt, params) for prompt in ([1, 2], list(range(20)), list(range(10)))}
    assert engine.step()
    for num_tokens in range(2, 6):
        engine.step()
        assert len(engine.answers[1, 0].tokens) == num_tokens, "a decoding sample misses a step"
    engine.run()
    assert_answers_are_those_of_solo_runs(engine, requests, set())


def test_running_out_of_blocks_preempts_the_youngest_and_changes_no_token():
    engine = ManualEngine(HashModel(num_blocks=10, block_size=2), max_num_seqs=4, max_num_tokens=16, max_context_len=20)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=14)
    requests = {engine.submit([token] * 3, params): ([token] * 3, params) for token in range(1, 5)}
    oldest_lengths = []
    while engine.step():
        oldest_lengths.append(len(engine.answers[1, 0].tokens))
    assert engine.stat("num_preemptions") > 0
    assert oldest_lengths[:14] == list(range(1, 15)), "the oldest must never wait"
    finished_order = [request_id for (request_id, _), answer in sorted(engine.answers.items()) if answer.finish_reason]
    assert finished_order == [1, 2, 3, 4]
    assert_answers_are_those_of_solo_runs(engine, requests, set())


def test_the_scores_of_a_prompt_outlive_a_preemption_and_no_cached_token_goes_without_one():
    engine = ManualEngine(HashModel(num_blocks=10, block_size=2), max_num_seqs=4, max_num_tokens=4, max_context_len=20)
    prompt = list(range(1, 13))
    params = SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=1)
    older = {engine.submit([1, 2, 3], replace(params, max_tokens=12)): ([1, 2, 3], replace(params, max_tokens=12))}
    requests = older | {engine.submit(prompt, params): (prompt, params) for _ in range(3)}
    engine.run()
    assert engine.stat("num_preemptions") > 0 and len(engine.prompt_logprobs) == len(requests)
    assert_answers_are_those_of_solo_runs(engine, requests, set())
    assert all(engine.answers[request_id, 0].num_cached_tokens == 0 for request_id in requests)


def test_nothing_overtakes_the_oldest_waiting_request():
    engine = ManualEngine(HashModel(num_blocks=8, block_size=2), max_num_seqs=4, max_num_tokens=32, max_context_len=17)
    greedy = SamplingParams(temperature=0.0, max_tokens=4)
    engine.submit([1] * 9, greedy)  # 5 of 8 blocks
    big = engine.submit([2] * 12, greedy)  # needs 6: waits
    small = engine.submit([3], greedy)  # would fit
    while engine.answers[small, 0].finish_reason is None:
        engine.step()
        assert not engine.answers[small, 0].tokens or engine.answers[big, 0].tokens
    engine.run()


@pytest.mark.parametrize("prompt_len", [1, 4, 5, 8, 9, 30])
def test_samples_share_what_the_first_one_has_computed_in_full_blocks(prompt_len):
    model = HashModel(num_blocks=64, block_size=4)
    engine = ManualEngine(model, max_num_seqs=8, max_num_tokens=64)
    prompt = [token % 24 for token in range(prompt_len)]
    params = SamplingParams(n=5, seed=11, max_tokens=3)
    request_id = engine.submit(prompt, params)
    engine.run()
    num_shared = min(prompt_len // 4 * 4, prompt_len - 1)
    assert model.num_rows == prompt_len + 4 * (prompt_len - num_shared) + 5 * 2
    assert [engine.answers[request_id, sample].num_cached_tokens for sample in range(5)] == [0] + [num_shared] * 4
    assert_answers_are_those_of_solo_runs(engine, {request_id: (prompt, params)}, set())


def test_the_prefix_of_a_finished_sample_is_kept_for_siblings_that_still_wait():
    model = HashModel(num_blocks=12, block_size=4)
    engine = ManualEngine(model, max_num_seqs=1, max_num_tokens=16)
    params = SamplingParams(n=3, seed=1, max_tokens=2)
    prompt = list(range(13))
    request_id = engine.submit(prompt, params)
    engine.run()
    assert model.num_rows == 13 + 1 + 2 * (1 + 1)
    assert engine.stat("num_used_blocks") == 0
    assert_answers_are_those_of_solo_runs(engine, {request_id: (prompt, params)}, set())


def test_samples_of_one_request_differ_and_each_seed_replays_alone():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_seqs=8)
    params = SamplingParams(n=4, seed=99, max_tokens=8)
    request_id = engine.submit([1, 2, 3], params)
    seeds = params.sample_seeds()
    replays = [engine.submit([1, 2, 3], SamplingParams(seed=seed, max_tokens=8)) for seed in seeds]
    engine.run()
    samples = [engine.answers[request_id, sample_idx].tokens for sample_idx in range(4)]
    assert len({tuple(tokens) for tokens in samples}) == 4
    assert samples == [engine.answers[replay, 0].tokens for replay in replays]


def test_tokens_do_not_depend_on_the_batch_the_chunking_or_the_order_of_arrival():
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=4, max_tokens=10)
    prompt = list(range(12))
    outputs = set()
    for max_num_tokens, num_before, num_after in ((4, 0, 0), (64, 3, 2), (7, 5, 1), (5, 1, 6)):
        engine = ManualEngine(HashModel(num_blocks=30), max_num_tokens=max_num_tokens)
        for other in range(num_before):
            engine.submit([other] * (other + 1), SamplingParams(seed=other, max_tokens=9))
        request_id = engine.submit(prompt, params)
        for other in range(num_after):
            engine.submit([other] * 5, SamplingParams(temperature=0.0, max_tokens=9))
        engine.run()
        outputs.add(tuple(engine.answers[request_id, 0].tokens))
    assert len(outputs) == 1


@pytest.mark.parametrize("num_steps_before", [0, 1, 2, 4])
def test_a_cancelled_request_frees_its_blocks_in_the_step_that_sees_it(num_steps_before):
    engine = ManualEngine(HashModel(num_blocks=32), max_num_seqs=2, max_num_tokens=4)
    params = SamplingParams(max_tokens=20, n=2, seed=0)
    request_id = engine.submit(list(range(10)), params)  # prefills in three chunks; sample 1 waits for it
    for _ in range(num_steps_before):
        engine.step()
    engine.core.cancel(request_id)
    engine.step()
    assert engine.stat("num_used_blocks") == 0
    assert [engine.answers[request_id, sample].finish_reason for sample in range(2)] == ["cancelled"] * 2
    assert not engine.step()


def test_a_cancellation_during_the_forward_takes_effect_in_that_step():
    model = HashModel(num_blocks=32)
    engine = ManualEngine(model)
    core = engine.core
    model.during_forward = lambda: core.cancel(1) if model.num_forwards == 4 else None
    params = SamplingParams(max_tokens=20, temperature=0.0)
    requests = {engine.submit([7], params): ([7], params), engine.submit([8], params): ([8], params)}
    for _ in range(4):
        engine.step()
    assert (len(engine.answers[1, 0].tokens), engine.answers[1, 0].finish_reason) == (3, "cancelled")
    assert (len(engine.answers[2, 0].tokens), engine.answers[2, 0].finish_reason) == (4, None)
    engine.run()
    model.during_forward = None  # it refers to the engine that owns the model
    assert_answers_are_those_of_solo_runs(engine, requests, {(1, 0)})


def test_cancelling_unknown_finished_or_impossible_ids_is_ignored():
    engine = ManualEngine(HashModel(num_blocks=8))
    request_id = engine.submit([1], SamplingParams(max_tokens=1))
    engine.run()
    for cancel in (
        lambda: engine.core.cancel(request_id),
        lambda: engine.core.cancel(77),
        lambda: engine.core.cancel(-1),
        lambda: engine.core.cancel_sample(request_id, 5),
        lambda: engine.core.cancel_sample(request_id, -1),
    ):
        cancel()
    assert not engine.step()
    assert engine.stat("num_finished_samples") == 1


@pytest.mark.parametrize("bad_value", [np.nan, np.inf])
def test_a_bad_row_ends_its_request_with_an_error_and_nobody_elses(bad_value):
    class PoisonedModel(HashModel):
        def logits(self, history):
            logits = super().logits(history)
            if history[0] == 9 and len(history) == 4:
                logits[2] = bad_value
            return logits

    engine = ManualEngine(PoisonedModel(num_blocks=32))
    params = SamplingParams(max_tokens=6, seed=0)
    requests = {engine.submit([token, 1], params): ([token, 1], params) for token in (8, 9, 10)}
    engine.run()
    poisoned = engine.answers.pop((2, 0))
    assert (len(poisoned.tokens), poisoned.finish_reason) == (2, "error")
    assert "output token 2" in poisoned.error
    assert_answers_are_those_of_solo_runs(engine, requests, set())
    assert engine.stat("num_used_blocks") == 0


def test_a_model_that_raises_ends_the_requests_of_that_step_and_the_engine_goes_on():
    class FailingModel(HashModel):
        def forward(self, *batch):
            if self.num_forwards == 2:
                self.num_forwards += 1
                raise RuntimeError("boom at step 2")
            return super().forward(*batch)

    engine = ManualEngine(FailingModel(num_blocks=32))
    params = SamplingParams(max_tokens=6, seed=0)
    engine.submit([1], params)
    engine.run()
    answer = engine.answers.pop((1, 0))
    assert answer.finish_reason == "error" and "boom at step 2" in answer.error
    requests = {engine.submit([2], params): ([2], params)}
    engine.run()
    assert_answers_are_those_of_solo_runs(engine, requests, set())


def test_the_context_is_never_exceeded_and_ends_with_length():
    engine = ManualEngine(HashModel(num_blocks=64), max_context_len=12)
    open_ended = engine.submit([1] * 7, SamplingParams(temperature=0.0, ignore_eos=True, eos_token_ids=(EOS,)))
    engine.run()
    assert (len(engine.answers[open_ended, 0].tokens), engine.answers[open_ended, 0].finish_reason) == (5, "length")


def test_a_request_that_can_never_fit_is_refused_with_the_limit():
    engine = ManualEngine(HashModel(num_blocks=4, block_size=4), max_context_len=64)
    assert engine.core.max_total_len == 17
    with pytest.raises(_core.RequestTooLargeError, match=r"needs 18 tokens.*KV cache holds requests of at most 17"):
        engine.core.submit([1] * 10, SamplingParams(max_tokens=8))
    with pytest.raises(_core.RequestTooLargeError, match=r"needs 66 tokens.*context of the model holds 64"):
        engine.core.submit([1] * 65, SamplingParams())
    fits = engine.submit([1] * 10, SamplingParams(max_tokens=7, temperature=0.0))
    open_ended = engine.submit([1] * 10, SamplingParams(temperature=0.0))
    engine.run()
    assert len(engine.answers[fits, 0].tokens) == len(engine.answers[open_ended, 0].tokens) == 7


@pytest.mark.parametrize(("prompt", "message"), [([], "no token"), ([24], "token id 24"), ([-1], "token id -1")])
def test_a_prompt_outside_the_vocabulary_is_refused(prompt, message):
    engine = ManualEngine(HashModel(num_blocks=4))
    with pytest.raises(ValueError, match=message):
        engine.core.submit(prompt, SamplingParams())


def test_the_queue_is_bounded_and_takes_more_when_requests_start():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_seqs=1, max_queue_len=2)
    params = SamplingParams(max_tokens=1)
    engine.submit([1], params)
    engine.submit([1], params)
    with pytest.raises(_core.QueueFullError, match="the queue holds 2 answers: 2 are waiting, and 1 more is asked for"):
        engine.core.submit([1], params)
    engine.step()
    engine.submit([1], params)
    with pytest.raises(_core.QueueFullError):
        engine.core.submit([1], params)
    engine.core.cancel(3)
    engine.step()
    engine.submit([1], params)
    engine.run()
    assert engine.stat("num_queued_requests") == engine.stat("num_queued_samples") == 0


def test_every_sample_takes_a_place_in_the_queue_and_more_samples_than_it_holds_wait_alone():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_seqs=2, max_queue_len=4)
    engine.submit([1], SamplingParams(max_tokens=3, n=7))
    with pytest.raises(_core.QueueFullError, match="7 are waiting"):
        engine.core.submit([1], SamplingParams(max_tokens=1))
    while engine.stat("num_queued_samples") > 3:
        engine.step()
    with pytest.raises(_core.QueueFullError, match="2 more are asked for"):
        engine.core.submit([1], SamplingParams(max_tokens=1, n=2))
    last = engine.submit([1], SamplingParams(max_tokens=1))
    engine.core.cancel(1)
    engine.core.cancel(last)
    engine.run()
    assert engine.stat("num_queued_samples") == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_num_seqs", 0, "max_num_seqs is 0"),
        ("max_num_tokens", 3, "max_num_tokens .* is 3, expected at least 4"),
        ("max_context_len", 1, "max_context_len is 1"),
        ("max_queue_len", 0, "max_queue_len is 0"),
    ],
)
def test_options_that_cannot_work_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        ManualEngine(HashModel(num_blocks=4), **{option: value})


@pytest.mark.parametrize("bad_value", [np.nan, np.inf])
def test_bad_scores_that_are_ignored_are_never_chosen_and_a_row_without_any_other_ends_the_sample(bad_value):
    class PoisonedModel(HashModel):
        def logits(self, history):
            logits = super().logits(history)
            logits[np.argmax(logits)] = bad_value
            if len(history) == 9:
                logits[:] = bad_value
            return logits

    model = PoisonedModel(num_blocks=32)
    engine = ManualEngine(model, ignores_nan=True)
    request_id = engine.submit([8, 1, 2], SamplingParams(temperature=0.0, max_tokens=20))
    engine.run()
    answer = engine.answers[request_id, 0]
    assert (len(answer.tokens), answer.finish_reason, answer.error) == (6, "stop", None)
    for idx, token_id in enumerate(answer.tokens):
        assert token_id == np.argsort(HashModel.logits(model, (8, 1, 2, *answer.tokens[:idx])))[-2], "the best of the others"
    assert engine.stat("num_bad_rows") == 7
    assert engine.stat("num_unused_blocks") == 0, "what led to bad rows is not kept for others"


def test_a_sample_that_let_others_pass_takes_its_place_back():
    engine = ManualEngine(HashModel(num_blocks=16, block_size=2), max_num_seqs=3, max_num_tokens=8, max_context_len=30)
    first = engine.submit(list(range(10)), SamplingParams(n=2, seed=1, max_tokens=12))  # sample 1 waits for the prefill of sample 0
    engine.step()
    young = [engine.submit([20 + idx] * 3, SamplingParams(temperature=0.0, max_tokens=20)) for idx in range(2)]
    steps_to_first_end = 0
    while engine.answers[first, 0].finish_reason is None or engine.answers[first, 1].finish_reason is None:
        assert engine.step()
        steps_to_first_end += 1
    assert steps_to_first_end <= 16
    assert all(engine.answers[request_id, 0].finish_reason is None for request_id in young)
    engine.run()
