"""The simulator of the engine: no seed may find anything, and every planted bug must be found."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .simulate import build, planted

SIMULATOR = Path(__file__).with_name("simulator.cpp")
NUM_SEEDS = 3000
NUM_SEEDS_FOR_PLANTS = 60_000

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PLANTS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "a shared block is not counted": {"scheduler.cpp": [("    cache_.retain(block);\n", "")]},
    "blocks are found in other scopes": {
        "prefix_cache.cpp": [("mix_bits(hash_seed_ ^ scope.high) ^ scope.low", "mix_bits(hash_seed_)"), (" && known.scope == scope", "")]
    },
    "parts of blocks are copied from other scopes": {
        "prefix_cache.cpp": [
            ("mix_bits(hash_seed_ ^ scope.high) ^ scope.low", "mix_bits(hash_seed_)"),
            (" || !(known.scope == scope)", ""),
        ]
    },
    "a part of a block is used without a copy": {
        "scheduler.cpp": [("if (partial_.num_tokens > 0) block_copies_", "if (false) block_copies_")]
    },
    "one token too many is taken from a part of a block": {
        "scheduler.cpp": [
            ("sequence.num_computed = num_prefix_tokens();", "sequence.num_computed = num_prefix_tokens() + (prefix_.size() > 1);")
        ]
    },
    "a tail is kept with a token that is not computed": {
        "scheduler.cpp": [
            (
                "static_cast<size_t>(sequence.num_computed - num_full_tokens));",
                "sequence.tokens.size() - static_cast<size_t>(num_full_tokens));",
            )
        ]
    },
    "a part is copied over the whole of its source": {
        "engine.cpp": [("model_.copy_block(copy.source, copy.target);", "model_.copy_block(copy.target, copy.source);")]
    },
    "copies are made when the model has run": {
        "engine.cpp": [
            ("  chunks_ = scheduler_.schedule();\n  copy_blocks();", "  chunks_ = scheduler_.schedule();"),
            ("    logits_ = model_.forward(batch_);", "    logits_ = model_.forward(batch_);\n    copy_blocks();"),
        ]
    },
    "a request runs with the adapter of the one before": {
        "engine.cpp": [
            (
                "adapter_slots_.push_back(sequence.request->adapter_slot);",
                "adapter_slots_.push_back(adapter_slots_.empty() ? sequence.request->adapter_slot : adapter_slots_.back());",
            )
        ]
    },
    "a finished sample keeps its blocks": {"scheduler.cpp": [("    release_blocks(sequence, is_sound);\n  } else {", "  } else {")]},
    "a block is known before it is full": {
        "scheduler.cpp": [
            ("(sequence.num_published + 1) * options_.block_size <=", "(sequence.num_published + 1) * options_.block_size - 1 <=")
        ]
    },
    "the last token is not computed": {
        "scheduler.cpp": [("request.num_scored : sequence.num_tokens() - 1;", "request.num_scored : sequence.num_tokens();")]
    },
    "the oldest is preempted": {"scheduler.cpp": [("Sequence& youngest = *running_.back();", "Sequence& youngest = *running_.front();")]},
    "the youngest is admitted first": {
        "scheduler.cpp": [("auto next = waiting_.begin();", "auto next = std::prev(waiting_.end(), waiting_.empty() ? 0 : 1);")]
    },
    "a cancelled sample still gets its token": {"engine.cpp": [("if (is_cancelled) continue;", "")]},
    "a cancelled request keeps a sample": {
        "engine.cpp": [
            (
                "for (Sequence& sequence : found->second->samples) end_without_token(sequence, FinishReason::cancelled, {});",
                "end_without_token(found->second->samples[0], FinishReason::cancelled, {});",
            )
        ]
    },
    "a missing mask is not noticed": {
        "engine.cpp": [("sequence.mask_position != num_output_tokens(sequence)", "sequence.mask_position < 0")]
    },
    "what a failed step computed is kept": {
        "engine.cpp": [
            (
                "    if (!forward_error_.empty()) {",
                "    if (!forward_error_.empty()) {\n      scheduler_.mark_computed(sequence, chunk.num_tokens);",
            ),
            ("reason != FinishReason::error && !sequence.has_bad_rows", "true"),
        ]
    },
    "a row of logits goes to the wrong sample": {
        "engine.cpp": [("logits_.data + logits_.stride * logit_row);", "logits_.data + logits_.stride * (num_jobs_ - 1));")]
    },
    "two rows are sampled with one result": {"engine.cpp": [("jobs = jobs.subspan(has_sample ? 1 : 0);", "")]},
    "a wrong guess is taken": {
        "engine.cpp": [("sequence.tokens.back() == sequence.proposer.proposed()[static_cast<size_t>(num_accepted)]", "true")]
    },
    "a guess counts as computed before it is checked": {
        "engine.cpp": [("mark_computed(sequence, chunk.num_tokens);", "mark_computed(sequence, chunk.num_rows());")]
    },
    "guesses pass the limit of tokens": {
        "scheduler.cpp": [("std::min(limit, sequence.request->max_total_len - sequence.num_tokens() - 1)", "limit")]
    },
    "blocks with a NaN are known to others": {"scheduler.cpp": [("  if (sequence.has_bad_rows) return;", "")]},
    "blocks are known before a NaN is seen": {
        "engine.cpp": [
            (
                "    if (has_sample) note_row(sequence, *first_sample);\n    scheduler_.mark_computed(sequence, chunk.num_tokens);",
                "    scheduler_.mark_computed(sequence, chunk.num_tokens);\n    if (has_sample) note_row(sequence, *first_sample);",
            )
        ],
        "scheduler.cpp": [("  if (!is_sound) forget_own_blocks(sequence);\n", "")],
    },
    "a NaN gives a token": {"sampler.cpp": [("result.is_bad_row = raw_max.has_nan ||", "result.is_bad_row =")]},
    "the queue holds one more": {
        "step_loop.cpp": [("num_queued + num_samples > max_queue_len_", "num_queued + num_samples - 1 > max_queue_len_")]
    },
    "a cancelled sample keeps its place in the queue": {"scheduler.cpp": [("if (!sequence.was_admitted) --num_unstarted_samples_;", "")]},
    "a loop whose masks have come sleeps on": {"engine.cpp": [("is_stalled_ = chunks_.empty()", "is_stalled_ |= chunks_.empty()")]},
    "a request with vectors shares its blocks": {"scheduler.cpp": [(" || !request.params.embedding_positions.empty()", "")]},
    "a vector goes to the row of another position": {
        "engine.cpp": [("static_cast<size_t>(*at - begin), nullptr)", "static_cast<size_t>(*at - begin) / 2, nullptr)")]
    },
    "the vector at the begin of a chunk is forgotten": {
        "engine.cpp": [("std::ranges::lower_bound(positions, begin)", "std::ranges::lower_bound(positions, begin + (begin > 0))")]
    },
    "the vectors of the step before are still there": {
        "engine.cpp": [("  embeddings_.clear();\n", "  if (chunks_.size() > 1) embeddings_.clear();\n")]
    },
    "another sample fails than the one that was meant": {
        "engine.cpp": [
            (
                "find_sample(request_id, sample_idx);\n  if (sequence != nullptr) end_without_token(*sequence, FinishReason::error",
                "find_sample(request_id, 0);\n  if (sequence != nullptr) end_without_token(*sequence, FinishReason::error",
            )
        ]
    },
    "a guess is taken after the end": {
        "engine.cpp": [
            ("num_accepted < chunk.num_proposed && sequence.state == SequenceState::running &&", "num_accepted < chunk.num_proposed &&")
        ]
    },
    "log-probabilities of the row before": {"sampler.cpp": [("  result.top_logprobs.clear();\n", "")]},
    "copied tokens are not told": {
        "scheduler.cpp": [
            ("sequence.num_cached = sequence.num_computed;", "sequence.num_cached = sequence.num_published * options_.block_size;")
        ]
    },
    "blocks of the prefix that wake up are not counted": {
        "scheduler.cpp": [("num_new + num_woken + num_running()", "num_new + num_running()")]
    },
    "nobody makes room for the oldest": {"scheduler.cpp": [("  if (!is_overtaken()) return;\n", "  return;\n")]},
    "the parent of a part is not compared": {
        "prefix_cache.cpp": [
            ("if (known.parent != parent || !(known.scope == scope)) continue;", "if (!(known.scope == scope)) continue;"),
            ("hash = mix_bits(hash + static_cast<uint64_t>(parent));", "hash = mix_bits(hash);"),
        ]
    },
    "only hashes are compared, and they are bad": {
        "prefix_cache.cpp": [
            ("std::ranges::equal(tokens_of(block), tokens)", "true"),
            (
                "mix_bits(hash ^ static_cast<uint64_t>(token_id)) + hash_seed_;",
                "mix_bits(hash ^ static_cast<uint64_t>(token_id / 2)) + hash_seed_;",
            ),
        ]
    },
    "an evicted block is still found": {"prefix_cache.cpp": [("  remove_unused(block);\n  erase(block);", "  remove_unused(block);")]},
    "tokens from the cache go without a score": {
        "scheduler.cpp": [("num_unscored(request) > 0 ? request.num_scored : sequence", "false ? request.num_scored : sequence")]
    },
    "samples do not wait for the scores of their prompt": {"scheduler.cpp": [("if (num_unscored(request) > 0) {", "if (false) {")]},
    "scores take the logits of others": {
        "scheduler.cpp": [("const int64_t num_logits = 1 + score_budget_;", "const int64_t num_logits = 1000;")]
    },
    "what was scored is scored again after a preemption": {
        "scheduler.cpp": [("std::max<int64_t>(0, sequence.request->num_scored - sequence.num_computed);", "0;")]
    },
}
QUICK_PLANTS = ["a shared block is not counted", "blocks are found in other scopes"]


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=1800, check=False)


def test_random_request_streams_break_no_invariant_and_change_no_token() -> None:
    result = run(build(SIMULATOR), 0, NUM_SEEDS)
    assert result.returncode == 0, result.stdout
    totals = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", result.stdout)}
    at_least = {
        "steps": 20 * NUM_SEEDS,
        "cached": 10 * NUM_SEEDS,
        "evictions": NUM_SEEDS,
        "preemptions": NUM_SEEDS // 4,
        "proposed": NUM_SEEDS,
        "accepted": NUM_SEEDS // 2,
        "errors": NUM_SEEDS // 10,
    }
    assert all(totals[name] >= count for name, count in at_least.items()), f"the streams are too tame: {totals}"


def assert_is_found(plant: str) -> None:
    result = run(build(SIMULATOR, PLANTS[plant]), 0, NUM_SEEDS_FOR_PLANTS)
    assert result.returncode != 0, f"planted, but not found: {plant}"
    if result.returncode == 1:  # else it crashed
        assert re.search(r"seed \d+, step \d+: .+\nreplay: python tests/engine/simulate.py \d+ 1 --trace\n$", result.stdout)


@pytest.mark.parametrize("plant", PLANTS)
def test_every_planted_bug_still_fits_the_source(plant: str) -> None:
    assert planted(PLANTS[plant])


@pytest.mark.parametrize("plant", QUICK_PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    assert_is_found(plant)


@pytest.mark.slow
@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant not in QUICK_PLANTS])
def test_every_planted_bug_is_found(plant: str) -> None:
    assert_is_found(plant)


@pytest.mark.slow
def test_100000_random_request_streams_break_nothing() -> None:
    result = run(build(SIMULATOR), 0, 100_000)
    assert result.returncode == 0, result.stdout
