"""The tree of known KV blocks: against a plain model of it, and through the engine, where a hit must change no token."""

import random
from dataclasses import dataclass, field
from itertools import accumulate
from operator import and_, eq

import pytest
from friendli_runtime._core import PrefixCache
from friendli_runtime.sampling import SamplingParams

from .hash_model import HashModel, ManualEngine, expected_answer

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)
A, B = (1, 1), (1, 2)


@dataclass
class PlainCache:
    """What `PrefixCache` must know, in dictionaries: block → (scope, all tokens up to its end), and who uses which blocks."""

    known: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = field(default_factory=dict)
    """Full blocks and tails."""
    users: list[list[int]] = field(default_factory=list)

    def find(self, scope: tuple[int, int], tokens: tuple[int, ...], block_size: int) -> list[int]:
        block_of = {entry: block for block, entry in self.known.items()}
        blocks = []
        for end in range(block_size, len(tokens) + 1, block_size):
            block = block_of.get((scope, tokens[:end]))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def partial_len(self, scope: tuple[int, int], tokens: tuple[int, ...], block_size: int) -> int:
        """How many tokens that follow the known head begin some known block after it."""
        start = len(self.find(scope, tokens, block_size)) * block_size
        after_head = [known[start:] for s, known in self.known.values() if s == scope and known[:start] == tokens[:start]]
        common = [sum(accumulate(map(eq, known, tokens[start:]), and_)) for known in after_head]
        return min(max(common, default=0), block_size - 1)

    def num_users(self, num_blocks: int) -> list[int]:
        return [sum(blocks.count(block) for blocks in self.users) for block in range(num_blocks)]


@pytest.mark.parametrize("seed", range(60))
def test_random_use_finds_exactly_what_was_published_and_not_evicted(seed):
    rng = random.Random(seed)
    num_blocks, block_size = rng.randint(4, 16), rng.randint(1, 3)
    cache = PrefixCache(num_blocks, block_size, hash_seed=seed)
    plain = PlainCache()
    last_use = {}

    def release(blocks: list[int], now: int) -> None:
        """Gives them back, sometimes with a tail after them, if there is room for one."""
        num_tail = rng.randrange(block_size)
        if num_tail and blocks and len(plain.known) < num_blocks and cache.num_available > cache.num_unused:
            scope, head = plain.known[blocks[-1]]
            tail, tokens = cache.allocate(), tuple(rng.randrange(2) for _ in range(num_tail))
            is_new = plain.partial_len(scope, head + tokens, block_size) < num_tail
            cache.publish_tail(scope, blocks[-1], tokens, tail)
            if is_new:
                plain.known[tail] = (scope, head + tokens)
            cache.release(tail)
            last_use[tail] = now
        for block in reversed(blocks):
            cache.release(block)
            last_use[block] = now

    for now in range(300):
        if rng.random() < 0.6:
            scope = rng.choice([A, B])
            tokens = tuple(rng.randrange(2) for _ in range(block_size * rng.randint(1, 4)))
            found, partial, partial_len = cache.find(scope, tokens)
            assert found == plain.find(scope, tokens, block_size)
            assert partial_len == plain.partial_len(scope, tokens, block_size) and (partial is None) == (partial_len == 0)
            if partial is not None:
                start = len(found) * block_size
                known_scope, known = plain.known[partial]
                assert known_scope == scope and known[: start + partial_len] == tokens[: start + partial_len]
            for block in found:
                cache.retain(block)
            blocks, is_full = list(found), False
            for end in range(block_size * (len(found) + 1), len(tokens) + 1, block_size):
                unused = [b for b in plain.known if plain.num_users(num_blocks)[b] == 0 and b not in blocks]
                if cache.num_available == 0:
                    assert not unused
                    is_full = True
                    break
                new = cache.allocate()
                if new in plain.known:  # evicted: nothing that is used or has been used later than another one
                    assert new in unused and last_use[new] == min(last_use[b] for b in unused)
                    is_tail = len(plain.known[new][1]) % block_size > 0
                    assert is_tail or not any(
                        t[: len(plain.known[new][1])] == plain.known[new][1] and s == plain.known[new][0] and b != new
                        for b, (s, t) in plain.known.items()
                    ), "a block left before one that follows it"
                    del plain.known[new]
                assert new not in blocks
                blocks.append(cache.publish(scope, blocks[-1] if blocks else None, tokens[end - block_size : end], new))
                assert blocks[-1] == new
                plain.known[new] = (scope, tokens[:end])
            plain.users.append(blocks)
            assert is_full or cache.find(scope, tokens)[0] == blocks
        elif plain.users:
            release(plain.users.pop(rng.randrange(len(plain.users))), now)
        cache.check_invariants(plain.num_users(num_blocks))
    assert cache.num_evictions > 0


def test_who_computes_the_same_block_second_gets_the_first_one():
    cache = PrefixCache(4, 2)
    first, second = cache.allocate(), cache.allocate()
    assert cache.publish(A, None, [1, 2], first) == first
    assert cache.publish(A, None, [1, 2], second) == first
    cache.check_invariants([2, 0, 0, 0])
    assert cache.num_available == 3


def test_a_block_is_forgotten_only_by_its_last_user_and_before_its_parent():
    cache = PrefixCache(4, 1)
    head = cache.publish(A, None, [1], cache.allocate())
    tail = cache.publish(A, head, [2], cache.allocate())
    assert not cache.forget(head), "something follows it"
    cache.retain(head)
    cache.retain(tail)
    assert not cache.forget(tail), "somebody else uses it"
    cache.release(tail)
    cache.release(head)
    assert cache.forget(tail) and cache.find(A, [1, 2])[0] == [head]
    assert cache.forget(head) and cache.find(A, [1, 2])[0] == []


def test_the_invariants_notice_a_missing_user():
    cache = PrefixCache(4, 1)
    cache.publish(A, None, [1], cache.allocate())
    with pytest.raises(RuntimeError, match="not owned as often"):
        cache.check_invariants([0, 0, 0, 0])


def run_one(
    engine: ManualEngine, prompt: list[int], params: SamplingParams = GREEDY, scope: tuple[int, int] = (0, 0)
) -> tuple[list[int], int]:
    """(tokens, cached tokens); the tokens must be those of a solo run."""
    request_id = engine.submit(prompt, params, scope)
    engine.run()
    answer = engine.answers[request_id, 0]
    assert answer.tokens == expected_answer(prompt, params, 0, vocab_size=24, max_total_len=engine.core.max_total_len).tokens
    return answer.tokens, answer.num_cached_tokens


def test_a_tail_is_found_as_far_as_it_is_asked_for_and_never_in_another_scope():
    cache = PrefixCache(4, 4)
    tail = cache.allocate()
    cache.publish_tail(A, None, [1, 2, 3], tail)
    cache.release(tail)
    assert cache.find(A, [1, 2, 3, 4]) == ([], tail, 3)
    assert cache.find(A, [1, 2, 5]) == ([], tail, 2)
    assert cache.find(A, [2, 2, 3]) == cache.find(B, [1, 2, 3]) == ([], None, 0)
    shorter = cache.allocate()
    cache.publish_tail(A, None, [1, 2], shorter)
    cache.check_invariants([1 if block == shorter else 0 for block in range(4)])
    cache.release(shorter)
    assert cache.num_unused == 1, "what a known block begins with is not kept twice"


@pytest.mark.parametrize("prompt_len", [1, 3, 4, 5, 8, 9, 30])
def test_of_a_prompt_asked_again_only_the_last_token_is_computed(prompt_len):
    num_cached = prompt_len - 1
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64)
    prompt = [token % 24 for token in range(prompt_len)]
    first = run_one(engine, prompt)
    num_rows = engine.model.num_rows
    assert run_one(engine, prompt) == (first[0], num_cached)
    assert engine.model.num_rows - num_rows == prompt_len - num_cached + len(first[0]) - 1
    assert (engine.stat("num_looked_up_tokens"), engine.stat("num_cached_tokens")) == (2 * prompt_len, num_cached)


def test_the_answer_is_known_too_so_that_a_conversation_goes_on_without_computing_it_again():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64)
    prompt = list(range(10))
    answer, _ = run_one(engine, prompt, SamplingParams(temperature=0.0, max_tokens=9))
    assert run_one(engine, [*prompt, *answer, 1, 2])[1] == 18, "all but the last token of the answer"


def test_a_prompt_whose_answer_ended_at_once_is_known_to_its_end():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    assert [run_one(engine, list(range(10)), params)[1] for _ in range(3)] == [0, 9, 9]
    assert engine.stat("num_unused_blocks") == 3, "the same tail is not kept twice"


def test_only_the_common_head_is_shared():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64)
    run_one(engine, list(range(16)))
    assert run_one(engine, [*range(9), 0, 0, 0, *range(12, 16)])[1] == 9
    assert run_one(engine, list(range(1, 16)))[1] == 0, "the same tokens at other positions are something else"


def test_other_scopes_share_nothing():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64)
    prompt = list(range(9))
    assert [run_one(engine, prompt, scope=scope)[1] for scope in (A, B, (2, 1), (0, 0), B, A)] == [0, 0, 0, 0, 8, 8]


def test_a_cache_that_is_switched_off_shares_between_samples_of_one_request_only():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_tokens=64, has_prefix_cache=False)
    prompt = list(range(9))
    assert [run_one(engine, prompt)[1] for _ in range(2)] == [0, 0]
    request_id = engine.submit(prompt, SamplingParams(n=3, seed=1, max_tokens=2))
    engine.run()
    assert [engine.answers[request_id, sample].num_cached_tokens for sample in range(3)] == [0, 8, 8]


def test_known_blocks_give_way_to_new_ones_the_longest_unused_first():
    engine = ManualEngine(HashModel(num_blocks=12), max_num_tokens=64, max_context_len=36)
    old, young = list(range(17)), list(range(20, 3, -1))
    run_one(engine, old)
    run_one(engine, young)
    assert engine.stat("num_unused_blocks") == 10
    assert run_one(engine, young)[1] == 16
    run_one(engine, [5] * 13)  # 4 blocks: 2 of them are the tail of `old` and the block before
    assert engine.stat("num_evictions") == 2
    assert run_one(engine, young)[1] == 16
    assert run_one(engine, old)[1] == 8


def test_a_preempted_sample_takes_up_its_own_blocks_again():
    engine = ManualEngine(HashModel(num_blocks=12), max_num_seqs=2, max_num_tokens=16, max_context_len=40)
    params = SamplingParams(temperature=0.0, max_tokens=24)
    prompts = [[1] * 9, [2] * 9]
    ids = [engine.submit(prompt, params) for prompt in prompts]
    engine.run()
    assert engine.stat("num_preemptions") > 0
    num_recomputed = engine.model.num_rows - 2 * (9 + 23)
    assert num_recomputed <= 2 * 9 + 24, "the second starts again with what was not evicted"
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert engine.answers[request_id, 0].tokens == expected_answer(prompt, params, 0, vocab_size=24, max_total_len=40).tokens


def test_what_led_to_a_bad_row_is_not_kept():
    class PoisonedModel(HashModel):
        def logits(self, history):
            logits = super().logits(history)
            if len(history) == 13:
                logits[2] = float("nan")
            return logits

    engine = ManualEngine(PoisonedModel(num_blocks=32), max_num_tokens=32)
    request_id = engine.submit(list(range(10)), SamplingParams(temperature=0.0, max_tokens=8))
    engine.run()
    assert engine.answers[request_id, 0].finish_reason == "error"
    assert (engine.stat("num_used_blocks"), engine.stat("num_unused_blocks")) == (0, 0)


def test_requests_that_arrive_together_share_once_the_first_has_computed():
    engine = ManualEngine(HashModel(num_blocks=64), max_num_seqs=4, max_num_tokens=8, max_context_len=64)
    prompt = list(range(20))
    ids = [engine.submit(prompt, GREEDY) for _ in range(3)]
    engine.run()
    cached = [engine.answers[request_id, 0].num_cached_tokens for request_id in ids]
    assert cached[0] == 0 and cached[2] > 0
    used_twice = [engine.answers[request_id, 0].tokens for request_id in ids]
    assert used_twice[0] == used_twice[1] == used_twice[2]
