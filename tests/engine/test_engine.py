"""`friendli_runtime.engine.Engine`: threads, callbacks, refusals and shutdown, on the hash model."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from friendli_runtime import _core
from friendli_runtime.engine import Engine, EngineStopped, QueueFull, RequestTooLarge, TokenOutput
from friendli_runtime.sampling import InvalidSamplingParams, SamplingParams

from .hash_model import HashModel, expected_answer

TIMEOUT_S = 60


class Collector:
    """A sink that remembers what it got and on which thread, and knows when all samples have ended."""

    def __init__(self, num_samples: int = 1, react: Callable[[TokenOutput], object] | None = None) -> None:
        self.outputs: list[TokenOutput] = []
        self.batches: list[list[TokenOutput]] = []
        self.threads: set[str] = set()
        self.done = threading.Event()
        self._num_open = num_samples
        self._react = react

    def __call__(self, outputs: list[TokenOutput]) -> None:
        self.outputs += outputs
        self.batches.append(outputs)
        self.threads.add(threading.current_thread().name)
        for output in outputs:
            if self._react:
                self._react(output)
            self._num_open -= output.finish_reason is not None
        if self._num_open == 0:
            self.done.set()

    def wait(self) -> "Collector":
        assert self.done.wait(TIMEOUT_S)
        return self

    def tokens(self, sample_idx: int = 0) -> list[int]:
        return [output.token_id for output in self.outputs if output.sample_idx == sample_idx and output.token_id is not None]


class GatedModel(HashModel):
    """Waits before every forward until the gate is open."""

    gate: threading.Event

    def forward(self, *batch):
        assert self.gate.wait(TIMEOUT_S)
        return super().forward(*batch)


def make_engine(model: HashModel | None = None, **options) -> Engine:
    model = model or HashModel(num_blocks=64)
    return Engine(model, **{"max_num_seqs": 4, "max_num_tokens": 8, "max_context_len": 64, "vocab_size": model.vocab_size, **options})


def gated() -> GatedModel:
    model = GatedModel(num_blocks=64)
    model.gate = threading.Event()
    return model


def test_concurrent_requests_from_many_threads_get_the_tokens_of_solo_runs():
    requests = [([index % 24] * (index % 9 + 1), SamplingParams(seed=index, max_tokens=12, n=index % 3 + 1)) for index in range(40)]
    sinks = [Collector(params.n) for _, params in requests]
    with make_engine() as engine:
        threads = [
            threading.Thread(target=engine.submit, args=(prompt, params, sink))
            for (prompt, params), sink in zip(requests, sinks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for (prompt, params), sink in zip(requests, sinks, strict=True):
            sink.wait()
            assert len(sink.threads) == 1
            for sample_idx in range(params.n):
                alone = expected_answer(prompt, params, sample_idx, vocab_size=24, max_total_len=64)
                assert sink.tokens(sample_idx) == alone.tokens
        stats = engine.stats()
    assert (stats["num_used_blocks"], stats["num_finished_samples"], stats["heartbeat_age_s"] < TIMEOUT_S) == (0, 79, True)


def test_one_call_of_the_sink_carries_all_samples_of_a_step():
    sink = Collector(2)
    with make_engine() as engine:
        engine.submit([1], SamplingParams(n=2, seed=1, max_tokens=3), sink)
        sink.wait()
    assert all(len(batch) % 2 == 0 for batch in sink.batches)


def test_without_a_dispatcher_outputs_wait_behind_the_event_fd_until_they_are_asked_for():
    sink, last = Collector(), Collector()
    with make_engine(has_dispatcher=False) as engine:
        engine.submit([1], SamplingParams(seed=1, max_tokens=3), sink)
        while not sink.done.is_set():
            assert select.select([engine.event_fd], [], [], TIMEOUT_S)[0]
            assert engine.deliver()
        assert not engine.deliver() and not select.select([engine.event_fd], [], [], 0)[0]
        assert sink.threads == {threading.current_thread().name}
        engine.submit([1], SamplingParams(seed=1), last)
    assert last.outputs[-1].finish_reason == "cancelled"


def model_that_waits_for(event: threading.Event) -> HashModel:
    """Its third step ends only after the event, so that what a sink does about the first two steps is not too late."""
    model = HashModel(num_blocks=64)
    model.during_forward = lambda: event.wait(TIMEOUT_S) if model.num_forwards == 3 else None
    return model


def test_cancelling_from_a_sink_ends_the_request_and_no_other():
    is_cancelled = threading.Event()
    with make_engine(model_that_waits_for(is_cancelled)) as engine:
        sink, other = Collector(react=lambda _: (engine.cancel(1), is_cancelled.set())), Collector()
        engine.submit([1], SamplingParams(seed=0), sink)
        engine.submit([2], SamplingParams(seed=0, max_tokens=20), other)
        assert sink.wait().outputs[-1].finish_reason == "cancelled"
        assert len(other.wait().tokens()) == 20


def test_cancelling_one_sample_leaves_its_siblings():
    is_cancelled = threading.Event()
    with make_engine(model_that_waits_for(is_cancelled)) as engine:
        sink = Collector(2, lambda _: (engine.cancel_sample(1, 0), is_cancelled.set()))
        engine.submit([1], SamplingParams(n=2, seed=0, max_tokens=30), sink)
        sink.wait()
    reasons = {output.sample_idx: output.finish_reason for output in sink.outputs if output.finish_reason}
    assert reasons == {0: "cancelled", 1: "length"}


def test_prompts_are_shared_between_requests_of_one_cache_salt_only():
    cached = {}
    with make_engine(max_context_len=32) as engine:
        for name, salt in (("first", ""), ("again", ""), ("other", "tenant"), ("other again", "tenant"), ("longer salt", "tenant ")):
            sink = Collector()
            engine.submit(list(range(9)), SamplingParams(max_tokens=2, cache_salt=salt), sink)
            cached[name] = sink.wait().outputs[0].num_cached_tokens
    assert cached == {"first": 0, "again": 8, "other": 0, "other again": 8, "longer salt": 0}


def test_a_full_queue_refuses_and_the_refused_sink_is_never_called():
    engine = make_engine(max_queue_len=2)  # not started yet: what is submitted waits
    accepted, refused = [Collector(), Collector()], Collector()
    for sink in accepted:
        engine.submit([1], SamplingParams(max_tokens=2), sink)
    with pytest.raises(QueueFull, match=r"the queue holds 2 answers: 2 are waiting.*\n.*max_queue_len\n.*try: "):
        engine.submit([1], SamplingParams(), refused)
    with engine:
        assert all(len(sink.wait().tokens()) == 2 for sink in accepted)
        engine.submit([1], SamplingParams(max_tokens=1), Collector())
    assert not refused.outputs


def test_refusals_name_what_is_wrong():
    with make_engine(HashModel(num_blocks=2)) as engine:
        with pytest.raises(InvalidSamplingParams, match="'temperature' is nan"):
            engine.submit([1], SamplingParams(temperature=float("nan")), Collector())
        with pytest.raises(InvalidSamplingParams, match="'prompt' is '0 tokens'"):
            engine.submit([], SamplingParams(), Collector())
        with pytest.raises(RequestTooLarge, match=r"needs 21 tokens.*KV cache holds requests of at most 9"):
            engine.submit([1], SamplingParams(max_tokens=20), Collector())
        with pytest.raises(ValueError, match="token id 99"):
            engine.submit([99], SamplingParams(), Collector())
        assert engine.max_total_len == 9 and engine.num_open_requests() == 0


def test_a_sink_that_raises_harms_nobody_else(caplog):
    def broken(_: list[TokenOutput]) -> None:
        raise ValueError("sink is broken")

    with make_engine() as engine:
        engine.submit([1], SamplingParams(max_tokens=3), broken)
        healthy = Collector()
        engine.submit([2], SamplingParams(max_tokens=3), healthy)
        assert len(healthy.wait().tokens()) == 3
    assert "sink is broken" in caplog.text


def test_shutdown_drains_what_it_can_and_cancels_the_rest():
    with make_engine() as engine:
        sink = Collector()
        engine.submit([1], SamplingParams(max_tokens=5), sink)
        engine.shutdown(drain_s=TIMEOUT_S)
        assert sink.done.is_set() and sink.outputs[-1].finish_reason == "length"
        with pytest.raises(EngineStopped, match="shutting down"):
            engine.submit([1], SamplingParams(), sink)
    model = gated()
    engine = make_engine(model)
    engine.start()
    sinks = [Collector() for _ in range(6)]
    for sink in sinks:
        engine.submit([1], SamplingParams(), sink)
    model.gate.set()
    engine.shutdown()
    assert all(sink.outputs[-1].finish_reason in ("cancelled", "length") for sink in sinks)
    assert engine.stats()["num_used_blocks"] == 0 and engine.num_open_requests() == 0
    engine.shutdown()


def test_several_threads_may_shut_the_engine_down_at_once_and_it_does_not_start_again():
    engine = make_engine()
    engine.start()
    sinks = [Collector() for _ in range(8)]
    for sink in sinks:
        engine.submit([1], SamplingParams(), sink)
    threads = [threading.Thread(target=engine.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert all(sink.wait() for sink in sinks)
    with pytest.raises(EngineStopped, match="cannot be started again"):
        engine.start()


def test_the_event_fd_is_readable_exactly_while_events_wait():
    core = _core.Engine(HashModel(num_blocks=4), max_num_seqs=1, max_num_tokens=4, max_queue_len=4, max_context_len=16, vocab_size=24)

    def is_readable() -> bool:
        return bool(select.select([core.event_fd], [], [], 0)[0])

    assert not is_readable()
    core.submit([1], SamplingParams(max_tokens=2))
    core.step()
    assert is_readable()
    assert len(core.take_events(0)) == 1 and not is_readable()


def test_a_program_that_forgets_shutdown_still_exits():
    script = """
import sys, time
from engine.hash_model import HashModel
from friendli_runtime.engine import Engine
from friendli_runtime.sampling import SamplingParams
engine = Engine(HashModel(num_blocks=400), max_num_seqs=4, max_num_tokens=8, max_context_len=1500, vocab_size=24)
engine.start()
for _ in range(4):
    engine.submit([1], SamplingParams(ignore_eos=True), lambda outputs: None)
print("bye", flush=True)
"""
    tests = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (0, "bye\n"), result.stderr


@pytest.mark.parametrize(("num_finished", "busy_s", "expected"), [(0, 0.0, 1), (10, 5.0, 1), (10, 50.0, 5), (10, 5000.0, 60)])
def test_who_is_refused_hears_when_half_of_the_queue_will_have_been_served(monkeypatch, num_finished, busy_s, expected):
    engine = make_engine(max_queue_len=2)
    for _ in range(2):
        engine.submit([1], SamplingParams(max_tokens=2), Collector())
    speed = {"num_finished_samples": num_finished, "busy_s": busy_s}
    monkeypatch.setattr(engine, "stats", lambda: {**type(engine).stats(engine), **speed})
    with pytest.raises(QueueFull) as refusal:
        engine.submit([1], SamplingParams(max_tokens=2), Collector())
    assert refusal.value.retry_after_s == expected
