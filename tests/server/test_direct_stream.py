"""Streams whose tokens the core writes are byte for byte those that go the long way, and so are usage and metrics."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine.hash_model import HashModel
from friendli_runtime.engine import Engine, TokenOutput
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from tools.templates import OPENS_THINKING

from .conftest import TestServer, start
from .scripted_engine import NAN, ScriptedEngine
from .test_completions import frames
from .test_lifetime import eventually, raw_request

NUM_REQUESTS = 150
OWN = re.compile(rb'"(id|created|created_at|item_id)":("[a-z]+[-_][0-9a-f]{8,}[_0-9]*"|\d+)')
"""What is another one in every answer."""
OF_TIME = re.compile("latenc|ttft|delay|current_")
TEXTS = ["hello world", "naïve 🙂 你好", "\n\n", '"quoted" \\ \u2028', "</think>", "the quick brown fox", " def main(self):"]


def mixed_script(tokenizer: Tokenizer) -> Callable[[Sequence[int], SamplingParams], list[int]]:
    """Answers of text, parts of characters, special tokens, ends and failures: with each call another one, the same in every server."""
    draw = random.Random(1)
    vocab_size = tokenizer.backend.num_tokens

    def script(prompt_ids: Sequence[int], params: SamplingParams) -> list[int]:
        token_ids: list[int] = []
        for _ in range(draw.randrange(12)):
            token_ids += tokenizer.encode(draw.choice(TEXTS), add_special_tokens=False)
            if draw.random() < 0.2:
                token_ids.append(draw.randrange(vocab_size))
        return token_ids + [NAN] * (draw.random() < 0.05)

    return script


def mixed_engine(tokenizer: Tokenizer, eos_id: int, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, eos_id, script=mixed_script(tokenizer), **options)


def mixed_request(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and body of a stream of any kind."""

    def maybe(share: float, **fields: Any) -> dict[str, Any]:
        return fields if draw.random() < share else {}

    path = draw.choice(["completions", "completions", "chat/completions", "chat/completions", "messages", "responses"])
    body: dict[str, Any] = {"stream": True, **maybe(0.3, temperature=0.5)}
    if path == "completions":
        prompts: Any = [f"question {i}" for i in range(draw.choice([1, 1, 2, 3]))]
        body |= {"prompt": prompts, "max_tokens": draw.choice([1, 2, 30, 100]), **maybe(0.2, logprobs=2), **maybe(0.2, echo=True)}
    else:
        user = {"role": "user", "content": "a question"}
        body |= {"input": [user]} if path == "responses" else {"messages": [user]}
        body |= {"max_output_tokens" if path == "responses" else "max_tokens": draw.choice([1, 2, 30, 100])}
    if path == "messages":
        body |= maybe(0.5, thinking={"type": "enabled", "budget_tokens": 1024}) | maybe(0.2, stop_sequences=["fox"])
    if path == "chat/completions":
        body |= maybe(0.2, logprobs=True, top_logprobs=1) | maybe(0.5, parse_reasoning=True, include_reasoning=draw.random() < 0.7)
    if path.endswith("completions"):
        body |= maybe(0.3, n=3) | maybe(0.2, stop=["fox", "wor"]) | maybe(0.2, ignore_eos=True)
        body |= maybe(0.2, min_tokens=min(5, body["max_tokens"]))
        body |= maybe(0.5, stream_options={"include_usage": True})
    return f"/v1/{path}", body


@pytest.fixture(params=[None, OPENS_THINKING])
def both(request: Any) -> Iterator[tuple[TestServer, TestServer]]:
    """A server whose streams take tokens, and one whose do not."""
    template = {"template": request.param.replace("<|im_end|>", "<|end|>")} if request.param is not None else {}
    servers = [start(make_engine=mixed_engine, is_direct=is_direct, **template) for is_direct in (True, False)]
    yield servers[0][0], servers[1][0]
    for _, stop in servers:
        stop()


def events_of(body: bytes, *, has_prompts: bool) -> list[bytes]:
    """In order; of several prompts, which may start in different steps, those of each choice in order."""
    events = OWN.sub(b"", body).split(b"\n\n")
    return sorted(events, key=lambda event: re.findall(rb'"index":(\d+)', event)) if has_prompts else events


def test_no_stream_shows_which_way_its_tokens_went(both: tuple[TestServer, TestServer]) -> None:
    draw = random.Random(2)
    for number in range(NUM_REQUESTS):
        path, body = mixed_request(draw)
        answers = [server.post(path, **body) for server in both]
        is_nan = answers[0].status_code == 400 and answers[0].json()["error"]["code"] == "nan_error"
        assert answers[0].status_code == 200 or is_nan, (body, answers[0].text)
        direct, indirect = (events_of(answer.content, has_prompts=len(body.get("prompt", ())) > 1) for answer in answers)
        assert direct == indirect, (number, path, body)
    direct, indirect = ([line.encode() for line in server.app.metrics.render().splitlines() if not OF_TIME.search(line)] for server in both)
    assert direct == indirect
    assert both[0].engine.num_direct_tokens > 1000 and both[1].engine.num_direct_tokens == 0


def test_reasoning_and_what_follows_it_go_the_short_way(make_server: Callable[..., TestServer]) -> None:
    server = make_server(template=OPENS_THINKING.replace("<|im_end|>", "<|end|>"), max_context_len=4096)
    reasoning, content = "let me see " * 40, "the answer " * 40
    body = {"messages": [{"role": "user", "content": f"[[{reasoning}</think>{content}]]"}], "parse_reasoning": True}
    *chunks, usage = frames(server.post("/v1/chat/completions", **body, stream=True, stream_options={"include_usage": True}))
    num_direct = server.engine.num_direct_tokens
    whole = server.post("/v1/chat/completions", **body).json()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    said = ["".join(delta.get(name, "") for delta in deltas) for name in ("reasoning_content", "content")]
    assert said == [whole["choices"][0]["message"][name] for name in ("reasoning_content", "content")] == [reasoning, content]
    assert usage["usage"] == whole["usage"]
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] > 100
    assert num_direct > 0.8 * usage["usage"]["completion_tokens"]


class CountingEngine(Engine):
    """Counts the outputs that come to Python."""

    num_delivered = 0

    def _deliver(self, request_id: int, outputs: list[TokenOutput]) -> None:
        self.num_delivered += len(outputs)
        super()._deliver(request_id, outputs)


def counting_engine(tokenizer: Tokenizer, eos_id: int, max_queue_len: int) -> CountingEngine:
    model = HashModel(num_blocks=512, vocab_size=tokenizer.backend.num_tokens)
    sizes = {"max_num_seqs": 8, "max_num_tokens": 32, "max_context_len": 512, "vocab_size": model.vocab_size}
    return CountingEngine(model, max_queue_len=max_queue_len, has_dispatcher=False, **sizes)


def test_streams_of_the_real_engine_have_the_tokens_and_the_usage_of_whole_answers(make_server: Callable[..., TestServer]) -> None:
    server = make_server(make_engine=counting_engine)

    def both_ways(seed: int) -> int:
        body = {"prompt": ["one", "two"], "n": 2, "seed": [seed, seed + 100], "max_tokens": 60}
        whole = server.post("/v1/completions", **body).json()
        *chunks, usage = frames(server.post("/v1/completions", **body, stream=True, stream_options={"include_usage": True}))
        counted = {**usage["usage"], "prompt_tokens_details": whole["usage"]["prompt_tokens_details"]}
        assert counted == whole["usage"]
        for choice in whole["choices"]:
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
            assert "".join(chunk["text"] for chunk in own) == choice["text"]
            assert [chunk["token"] for chunk in own if "token" in chunk] == choice["tokens"]
        return whole["usage"]["completion_tokens"]

    with ThreadPoolExecutor(4) as pool:
        num_streamed = sum(pool.map(both_ways, range(12)))
    num_direct = 2 * num_streamed - server.engine.num_delivered
    assert num_direct > 50, "most are parts of characters, or of an answer in which another choice is within one"


def test_a_client_that_reads_late_gets_every_token_in_order(make_server: Callable[..., TestServer]) -> None:
    draw = random.Random(3)
    letters = list(range(10, 60))
    answer = [draw.choice(letters) for _ in range(30_000)]
    server = make_server(max_context_len=40_000, make_engine=ScriptedEngine, script=lambda prompt_ids, params: answer)
    sock = raw_request(server, {"prompt": "p", "stream": True, "max_tokens": len(answer), "ignore_eos": True})
    eventually(lambda: any(has_stalled for _, has_stalled in server.http.core.connections()), "the client has stalled")
    num_taken = server.engine.num_direct_tokens
    time.sleep(0.1)
    assert max(num_bytes for num_bytes, _ in server.http.core.connections()) < 2**20, "the rest waits where it is small"
    data = b""
    while b"[DONE]" not in data[-100:]:
        data += sock.recv(2**20)
    sock.close()
    tokens = [int(token) for token in re.findall(rb'"token":(\d+)', data)]
    assert tokens == answer
    assert 0 < num_taken < server.engine.num_direct_tokens, "once the client reads, its tokens go the short way again"


def test_answers_of_one_batch_stay_apart(make_server: Callable[..., TestServer]) -> None:
    server = make_server(max_context_len=4096, step_s=0.001)
    words = [f"{i} " * (20 + i) for i in range(24)]

    def said(word: str) -> str:
        chunks = frames(server.post("/v1/chat/completions", messages=[{"role": "user", "content": f"[[{word}]]"}], stream=True))
        ends = Counter(chunk["choices"][0]["finish_reason"] for chunk in chunks)
        assert ends["stop"] == 1
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    with ThreadPoolExecutor(len(words)) as pool:
        assert list(pool.map(said, words)) == words
    assert server.engine.num_direct_tokens > sum(len(word.split()) for word in words)


def test_a_stream_without_text_frames_ends_as_any_other(server: TestServer) -> None:
    body = json.loads(server.post("/v1/responses", input=[{"role": "user", "content": "[[hello world]]"}]).content)
    events = server.post("/v1/responses", input=[{"role": "user", "content": "[[hello world]]"}], stream=True).text
    assert body["output"][0]["content"][0]["text"] == "hello world"
    assert [int(number) for number in re.findall(r'"sequence_number":(\d+)', events)] == list(range(events.count("event: ")))
