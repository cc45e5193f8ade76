"""Throughput of an artifact beside the limits of the machine, measured in the same run: the library behind `fmo bench`.

Greedy, end-of-sequence ignored, seeded random token ids. Each round runs every workload and both limits once; the medians over the rounds
are the result, so that a noisy neighbour hits a workload and its limit alike. Cold start is measured by a child process.

    round 1: limits, prefill, decode, batch 8, batch 16   round 2: …   then: cold start
"""

from __future__ import annotations

import json
import math
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .engine import Engine, TokenOutput
from .sampling import SamplingParams

PREFILL_TOKENS = 512
DECODE_PROMPT_TOKENS = 128
DECODE_NEW_TOKENS = 128
BATCH_PROMPT_TOKENS = 16
BATCH_NEW_TOKENS = 64
COLD_PROMPT_TOKENS = 8
COLD_ROUNDS = 3
DTYPE_BYTES = {
    "f32": 4,
    "i32": 4,
    "bf16": 2,
    "f16": 2,
    "bool": 1,
    "i8": 1,
    "i7": 1,
    "e4m3": 1,
    "i4": 0.5,
    "u4": 0.5,
    "e2m1": 0.5,
    "e8m0": 1,
}
MATRIX_LAYOUTS = ("panel16", "block8")
INTEGER_ACTS = ("i8", "i7")
BLOCK_SIZE = 16
"""Tokens of one KV block."""
MAX_NUM_TOKENS = 512
"""Rows of one step: a prompt of `PREFILL_TOKENS` is one step."""

Progress = Callable[[str, int, int], None]
"""Called with what is running now, how many measurements are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """`num_threads` 0: as many as the process may use. `batches`: numbers of concurrent sequences. `rounds`: samples of each figure."""

    num_threads: int = 0
    batches: tuple[int, ...] = (8, 16)
    rounds: int = 5
    kv_dtype: str | None = None
    cold_start: bool = True


@dataclass
class _Timeline:
    """When each of `num_seqs` sequences got each of its tokens, in seconds of `time.perf_counter`."""

    num_seqs: int
    started_s: float = 0.0
    token_times_s: list[list[float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _num_open: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def sink_of(self, seq: int) -> Callable[[list[TokenOutput]], None]:
        def sink(outputs: list[TokenOutput]) -> None:
            now_s = time.perf_counter()
            for output in outputs:
                if output.token_id is not None:
                    self.token_times_s[seq].append(now_s)
                if output.error is not None:
                    self.errors.append(output.error)
                if output.finish_reason is not None:
                    self._num_open -= 1
            if self._num_open == 0:
                self._done.set()

        return sink

    def run(self, engine: Engine, prompts: list[list[int]], num_new_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_new_tokens, temperature=0.0, ignore_eos=True)
        self._num_open = len(prompts)
        self.token_times_s = [[] for _ in prompts]
        self.started_s = time.perf_counter()
        for seq, prompt in enumerate(prompts):
            engine.submit(prompt, params, self.sink_of(seq))
        self._done.wait()
        if self.errors:
            raise RuntimeError(f"the engine failed during the benchmark: {self.errors[0]}")

    def first_token_s(self) -> float:
        """Seconds until every sequence had a token."""
        return max(times[0] for times in self.token_times_s) - self.started_s

    def decode_rate(self) -> float:
        """Tokens per second of all sequences together, after each had its first."""
        begin_s = self.first_token_s() + self.started_s
        end_s = max(times[-1] for times in self.token_times_s)
        num_tokens = sum(time_s > begin_s for times in self.token_times_s for time_s in times)
        return num_tokens / (end_s - begin_s)


class _Workloads:
    """The workloads on one engine; every prompt is new, so that no cache of prefixes can help."""

    def __init__(self, engine: Engine, vocab_size: int, max_context_len: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._max_context_len = max_context_len
        self._random = random.Random(0)

    def prompts(self, num_seqs: int, prompt_len: int) -> list[list[int]]:
        return [[self._random.randrange(self._vocab_size) for _ in range(prompt_len)] for _ in range(num_seqs)]

    def _run(self, num_seqs: int, prompt_len: int, num_new_tokens: int) -> _Timeline:
        timeline = _Timeline(num_seqs)
        timeline.run(self._engine, self.prompts(num_seqs, prompt_len), num_new_tokens)
        return timeline

    def prefill_tokens(self) -> int:
        """`PREFILL_TOKENS`, or what fits the context of the model."""
        return min(PREFILL_TOKENS, self._max_context_len - 1)

    def prefill_tok_s(self) -> float:
        num_tokens = self.prefill_tokens()
        return num_tokens / self._run(1, num_tokens, 1).first_token_s()

    def decode_tok_s(self) -> float:
        prompt_len = min(DECODE_PROMPT_TOKENS, self._max_context_len // 2)
        return self._run(1, prompt_len, min(DECODE_NEW_TOKENS, self._max_context_len - prompt_len)).decode_rate()

    def batch_tok_s(self, num_seqs: int) -> float:
        prompt_len = min(BATCH_PROMPT_TOKENS, self._max_context_len // 2)
        return self._run(num_seqs, prompt_len, min(BATCH_NEW_TOKENS, self._max_context_len - prompt_len)).decode_rate()


def _open(artifact_path: Path, options: BenchOptions) -> tuple[Any, Any, Engine]:
    """An executor and a started engine that hold every workload without preemption."""
    from .artifact import Artifact
    from .executor import load_executor

    max_num_seqs = max(1, *options.batches)
    artifact = Artifact.open(artifact_path)
    num_tokens = max(PREFILL_TOKENS, DECODE_PROMPT_TOKENS + DECODE_NEW_TOKENS, max_num_seqs * (BATCH_PROMPT_TOKENS + BATCH_NEW_TOKENS))
    executor = load_executor(
        artifact,
        num_threads=options.num_threads,
        max_num_tokens=MAX_NUM_TOKENS,
        max_num_logits=max_num_seqs,
        num_blocks=num_tokens // BLOCK_SIZE + 2 * max_num_seqs,
        kv_dtype=options.kv_dtype,
    )
    engine = Engine(
        executor,
        max_num_seqs=max_num_seqs,
        max_num_tokens=MAX_NUM_TOKENS,
        max_context_len=artifact.max_context_len,
        vocab_size=artifact.vocab_size,
    )
    engine.start()
    return artifact, executor, engine


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_bench(artifact_path: Path, options: BenchOptions, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measures and returns the figures by name; rates are tokens per second, `spread` holds (minimum, maximum) over the rounds.

    Raises ArtifactError when the artifact cannot be used, RuntimeError when the engine fails.
    """
    from . import _core

    artifact, executor, engine = _open(artifact_path, options)
    workloads = _Workloads(engine, engine.vocab_size, engine.max_context_len)
    measurements: dict[str, Callable[[], float]] = {"prefill_tok_s": workloads.prefill_tok_s, "decode_tok_s": workloads.decode_tok_s}
    for num_seqs in options.batches:
        measurements[f"batch{num_seqs}_tok_s"] = lambda n=num_seqs: workloads.batch_tok_s(n)  # type: ignore[misc]
    num_steps = (options.rounds + 1) * len(measurements) + options.rounds + (COLD_ROUNDS if options.cold_start else 0)
    num_done = 0

    def step(what: str) -> None:
        nonlocal num_done
        progress(what, num_done, num_steps)
        num_done += 1

    for name, measure in measurements.items():
        step(f"warming up {name}")
        measure()
    peak_rss_mb = _peak_rss_mb()  # before the limits take their own memory
    samples: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(options.rounds):
        step("limits of the machine")
        for name, value in _core.measure_limits(executor.num_threads).items():
            samples.setdefault(name, []).append(value)
        for name, measure in measurements.items():
            step(name)
            samples[name].append(measure())
    engine.shutdown()
    if options.cold_start:
        samples["cold_first_token_s"] = [_cold_start(artifact_path, options, step) for _ in range(COLD_ROUNDS)]
    progress("done", num_steps, num_steps)
    result: dict[str, Any] = {name: statistics.median(values) for name, values in samples.items()}
    result |= _context(artifact.plan, executor, options, workloads) | {"peak_rss_mb": peak_rss_mb}
    result |= _shares_of_the_limits(result)
    result["spread"] = {name: (min(values), max(values)) for name, values in samples.items()}
    return result


def _context(plan: dict[str, Any], executor: Any, options: BenchOptions, workloads: _Workloads) -> dict[str, Any]:
    """What the rates have to be read with."""
    traffic = _weight_traffic(plan)
    return {
        "weight_bytes": int(traffic.total_bytes),
        "streamed_weight_bytes": int(traffic.streamed_bytes),
        "linear_flop_per_token": traffic.flop_per_token,
        "linear_byte_op_per_token": traffic.byte_op_per_token,
        "prefill_tokens": workloads.prefill_tokens(),
        "num_threads": executor.num_threads,
        "isa": executor.isa,
        "rounds": options.rounds,
    }


@dataclass
class _WeightTraffic:
    """`streamed_bytes`: what a decoding step of one sequence reads. Operations of linears per prompt token: on f32, and on integers."""

    total_bytes: float = 0.0
    streamed_bytes: float = 0.0
    flop_per_token: float = 0.0
    byte_op_per_token: float = 0.0


def _weight_traffic(plan: dict[str, Any]) -> _WeightTraffic:
    """A step reads every weight once, but of an embedding one row, and of experts only those chosen.

    The output projection runs on the last row of a prompt only, so it does not count for a prompt token.
    """
    traffic, seen = _WeightTraffic(sum(_num_bytes(weight) for weight in plan["weights"].values())), set()
    for call in plan["calls"]:
        share, rows = 1.0, call["outputs"][0]["dims"][0]
        if call["op"] == "nn.embedding":
            continue
        if call["op"] == "moe.experts":
            share = call["inputs"][1]["dims"][1] / plan["weights"][call["inputs"][3]["id"]]["dims"][0]
        for view in call["inputs"]:
            if view is None or view["space"] != "weight":
                continue
            weight = plan["weights"][view["id"]]
            if view["id"] not in seen:
                traffic.streamed_bytes += share * _num_bytes(weight)
            seen.add(view["id"])
            if weight["layout"] in MATRIX_LAYOUTS and rows == "num_tokens":
                num_ops = 2.0 * share * math.prod(weight["dims"])
                if call["attrs"].get("act_dtype") in INTEGER_ACTS:
                    traffic.byte_op_per_token += num_ops
                else:
                    traffic.flop_per_token += num_ops
    return traffic


def _num_bytes(weight: dict[str, Any]) -> float:
    """Without padding; of a quantized weight codes, scales and zero points."""
    num_values = math.prod(weight["dims"])
    num_bytes = num_values * DTYPE_BYTES[weight["dtype"]]
    if weight["layout"] == "block8":
        per_group = DTYPE_BYTES[weight["scale_dtype"]] + (weight["dtype"] == "u4")
        num_bytes += num_values / weight["group"] * per_group
    return num_bytes


def _shares_of_the_limits(result: dict[str, Any]) -> dict[str, float]:
    """Decode against bandwidth ÷ bytes of the weights that a step reads, prefill against the peaks of f32 multiply-adds and byte products.

    Attention and the rest count as overhead.
    """
    shares = {}
    if result["streamed_weight_bytes"]:
        shares["decode_limit_tok_s"] = result["read_bandwidth_gb_s"] * 1e9 / result["streamed_weight_bytes"]
        shares["decode_share_of_limit"] = result["decode_tok_s"] / shares["decode_limit_tok_s"]
    work = {"fma_gflop_s": result["linear_flop_per_token"], "byte_gop_s": result["linear_byte_op_per_token"]}
    if any(work.values()):
        shares["prefill_limit_tok_s"] = 1e9 / sum(num_ops / result[limit] for limit, num_ops in work.items())
        shares["prefill_share_of_limit"] = result["prefill_tok_s"] / shares["prefill_limit_tok_s"]
    return shares


def _cold_start(artifact_path: Path, options: BenchOptions, step: Callable[[str], None]) -> float:
    """Seconds from the start of a fresh process to its first token."""
    step("cold start")
    settings = {"num_threads": options.num_threads, "kv_dtype": options.kv_dtype}
    started_s = time.monotonic()
    command = [sys.executable, "-m", "friendli_runtime.bench", str(artifact_path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the process for the cold start failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1]) - started_s


def _cold_child(arguments: Iterable[str]) -> None:
    """Prints the time (CLOCK_MONOTONIC, the parent's clock too) at which the first token arrived."""
    path, settings = arguments
    options = BenchOptions(batches=(1,), **json.loads(settings))
    _, _, engine = _open(Path(path), options)
    timeline = _Timeline(1)
    timeline.run(engine, [[1 % engine.vocab_size] * COLD_PROMPT_TOKENS], 1)
    print(time.monotonic(), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    _cold_child(sys.argv[1:])
