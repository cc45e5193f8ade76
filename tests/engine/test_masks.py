"""Constrained requests: no token without its mask, nobody else waits for it, and a late mask changes nothing but the time."""

import random
import threading
import zlib

import numpy as np
import pytest
from friendli_runtime import _core
from friendli_runtime.engine import Engine
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.mask_feeder import NUM_THREADS

from .hash_model import Answer, HashModel, ManualEngine, logits_of
from .test_engine import TIMEOUT_S, Collector

VOCAB_SIZE = 40  # more than one word of a mask
ALL = bytes([255] * 8)


def mask_of(tokens: tuple[int, ...]) -> bytes:
    """About a quarter of the tokens, another set for every history; never none."""
    rng = random.Random(zlib.crc32(np.asarray(tokens, np.int32).tobytes()))
    bits = sum(1 << token_id for token_id in range(VOCAB_SIZE) if rng.random() < 0.25) | 1 << rng.randrange(VOCAB_SIZE)
    return bits.to_bytes(8, "little")


def allows(mask: bytes, token_id: int) -> bool:
    return bool(int.from_bytes(mask, "little") >> token_id & 1)


def words(mask: bytes) -> list[int]:
    return list(np.frombuffer(mask, np.uint32))


def make_engine(**options) -> ManualEngine:
    return ManualEngine(HashModel(num_blocks=options.pop("num_blocks", 40), vocab_size=VOCAB_SIZE), **options)


def submit(engine: ManualEngine, prompt: list[int], params: SamplingParams, first_mask: bytes | None) -> int:
    request_id = engine.core.submit(prompt, params, first_mask)
    for sample_idx in range(params.n):
        engine.answers[request_id, sample_idx] = Answer()
    return request_id


def alone(prompt: list[int], params: SamplingParams, sample_idx: int, *, constrained: bool) -> list[int]:
    tokens: list[int] = []
    seed = params.sample_seeds()[sample_idx]
    while len(tokens) < params.max_tokens:
        mask = words(mask_of((*prompt, *tokens))) if constrained else []
        tokens.append(_core.sample_token(logits_of((*prompt, *tokens), VOCAB_SIZE), prompt, tokens, params, seed, mask)[0])
    return tokens


def test_a_sample_without_its_mask_waits_and_the_others_go_on():
    engine = make_engine()
    params = SamplingParams(max_tokens=6, seed=1)
    constrained = submit(engine, [1, 2, 3], params, mask_of((1, 2, 3)))
    free = engine.submit([4, 5], params)
    engine.run(max_steps=20)
    assert (engine.answers[free, 0].finish_reason, len(engine.answers[constrained, 0].tokens)) == ("length", 1)
    num_rows = engine.model.num_rows
    assert not engine.step() and engine.model.num_rows == num_rows, "waiting costs nothing"
    first = engine.answers[constrained, 0].tokens[0]
    engine.core.set_mask(constrained, 0, 1, mask_of((1, 2, 3, first)))
    assert engine.step() and len(engine.answers[constrained, 0].tokens) == 2


def test_a_mask_of_another_position_does_not_count():
    engine = make_engine()
    request_id = submit(engine, [1], SamplingParams(max_tokens=4, seed=1), ALL)
    engine.step()
    for position in (0, 2, 7):
        engine.core.set_mask(request_id, 0, position, ALL)
        engine.step()
        engine.step()
    assert len(engine.answers[request_id, 0].tokens) == 1


@pytest.mark.parametrize("end", ["cancel", "cancel_sample", "fail_sample"])
def test_a_waiting_sample_can_be_ended(end):
    engine = make_engine()
    request_id = submit(engine, [1, 2], SamplingParams(max_tokens=4, seed=1), ALL)
    engine.run(max_steps=5)
    getattr(engine.core, end)(*{"cancel": [request_id], "cancel_sample": [request_id, 0], "fail_sample": [request_id, 0, "why"]}[end])
    engine.run(max_steps=5)
    answer = engine.answers[request_id, 0]
    assert (answer.finish_reason, answer.error) == (("error", "why") if end == "fail_sample" else ("cancelled", None))
    assert (engine.stat("num_used_blocks"), engine.stat("num_running")) == (0, 0)
    engine.core.set_mask(request_id, 0, 1, ALL)  # comes too late
    assert not engine.step()


def test_a_mask_must_have_the_size_of_the_vocabulary():
    engine = make_engine()
    params = SamplingParams(max_tokens=2)
    for mask in (b"", b"\xff" * 4, b"\xff" * 12, b"\xff" * 7):
        with pytest.raises(ValueError, match="mask"):
            engine.core.submit([1], params, mask)
        with pytest.raises(ValueError, match="mask"):
            engine.core.set_mask(1, 0, 0, mask)


def test_a_mask_that_allows_nothing_ends_the_sample_with_an_error():
    engine = make_engine()
    request_id = submit(engine, [1], SamplingParams(max_tokens=4), bytes(8))
    engine.run(max_steps=5)
    assert engine.answers[request_id, 0].finish_reason == "error"
    assert "excluded" in engine.answers[request_id, 0].error


@pytest.mark.parametrize("seed", range(60))
def test_random_streams_give_each_sample_what_it_gets_alone_however_late_its_masks_come(seed):
    rng = random.Random(seed)
    engine = make_engine(num_blocks=rng.randint(12, 24), max_num_seqs=rng.randint(1, 5), max_context_len=24)
    due: list[tuple[int, tuple[int, int, int, bytes]]] = []  # (step, set_mask arguments)
    requests = {}
    steps = 0

    def deliver() -> None:
        for entry in [entry for entry in due if entry[0] <= steps]:
            due.remove(entry)
            engine.core.set_mask(*entry[1])

    engine.model.during_forward = deliver
    while len(requests) < 6 or due or engine.stat("num_running") or engine.stat("num_waiting") or engine.stat("num_queued_requests"):
        if len(requests) < 6 and rng.random() < 0.4:
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 14))]
            params = SamplingParams(max_tokens=rng.randint(1, 10), seed=rng.randrange(2**32), n=rng.choice([1, 1, 2]), temperature=1.5)
            constrained = rng.random() < 0.7
            request_id = submit(engine, prompt, params, mask_of(tuple(prompt)) if constrained else None)
            requests[request_id] = (prompt, params, constrained)
        counts = {key: len(answer.tokens) for key, answer in engine.answers.items()}
        steps += 1
        if rng.random() < 0.5:
            deliver()
        engine.step()
        for (request_id, sample_idx), answer in engine.answers.items():
            prompt, _, constrained = requests[request_id]
            if constrained and len(answer.tokens) > counts[request_id, sample_idx]:
                mask = mask_of((*prompt, *answer.tokens))
                due.append((steps + rng.choice([0, 1, 1, 4]), (request_id, sample_idx, len(answer.tokens), mask)))
        assert steps < 2000
    engine.model.during_forward = None
    assert engine.stat("num_used_blocks") == 0
    for (request_id, sample_idx), answer in engine.answers.items():
        prompt, params, constrained = requests[request_id]
        assert answer.tokens == alone(prompt, params, sample_idx, constrained=constrained)
        history = list(prompt)
        for token_id in answer.tokens:
            assert not constrained or allows(mask_of(tuple(history)), token_id)
            history.append(token_id)


class HeldMasks:
    """Masks that are not ready before `may_go`: those of a grammar that takes long."""

    first_mask = ALL

    def __init__(self) -> None:
        self.may_go = threading.Event()

    def sample(self) -> "HeldMasks":
        return self

    def advance(self, token_id: int) -> bytes:
        assert self.may_go.wait(TIMEOUT_S)
        return ALL


def test_others_get_all_their_tokens_while_every_thread_is_busy_with_a_mask():
    held, params = HeldMasks(), SamplingParams(max_tokens=12, seed=1)
    model = HashModel(num_blocks=40, vocab_size=VOCAB_SIZE)
    with Engine(model, max_num_seqs=8, max_num_tokens=64, max_context_len=64, vocab_size=VOCAB_SIZE) as engine:
        constrained = [Collector() for _ in range(NUM_THREADS + 1)]
        for sink in constrained:
            engine.submit([1, 2], params, sink, held)
        free = Collector()
        engine.submit([3, 4], params, free)
        assert len(free.wait().tokens()) == 12
        assert [len(sink.tokens()) for sink in constrained] == [1] * len(constrained)
        held.may_go.set()
        assert [len(sink.wait().tokens()) for sink in constrained] == [12] * len(constrained)
