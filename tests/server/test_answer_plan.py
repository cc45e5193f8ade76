"""What requests have in common is planned once, and nothing but that is shared."""

from typing import Any

import msgspec
import pytest
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.server import answer_plan
from friendli_runtime.server.answer_plan import AnswerPlanner, ChatPlan
from friendli_runtime.server.errors import ApiError
from friendli_runtime.server.fields import ChatRequest, strict_decoder
from friendli_runtime.server.limits import Limits
from friendli_runtime.server.params import chat_params

PLAIN: dict[str, list[Any]] = {
    "n": [1, 2],
    "seed": [0, 1],
    "stop": ["a", "b"],
    "max_tokens": [1, 7],
    "max_completion_tokens": [1, 7],
    "min_tokens": [1, 7],
    "temperature": [0, 0.5, 1],
    "top_p": [0.5, 1],
    "top_k": [0, 5],
    "min_p": [0, 0.5],
    "xtc_threshold": [0, 0.25],
    "xtc_probability": [0, 0.25],
    "frequency_penalty": [0, 0.25],
    "presence_penalty": [0, 0.25],
    "repetition_penalty": [1, 1.25],
    "ignore_eos": [False, True],
    "cache_salt": ["", "a"],
    "logprobs": [False, True],
    "parse_reasoning": [True, False],
}
COMPOSED: dict[str, Any] = {
    "seed": [3],
    "stop": ["a"],
    "eos_token": [3],
    "logit_bias": {"3": 1},
    "response_format": {"type": "text"},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "cache_salt": "a" * 65,
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def planner() -> AnswerPlanner:
    return AnswerPlanner(None, None, 100, (9,), Limits())


def asked(**fields: Any) -> ChatRequest:
    """As it comes in by HTTP."""
    request: ChatRequest = strict_decoder(ChatRequest).decode(msgspec.json.encode({"messages": MESSAGES, **fields}))
    return request


def params_of(request: ChatRequest) -> SamplingParams:
    return chat_params(request, Limits(), (9,))


def planned(planner: AnswerPlanner, **fields: Any) -> tuple[SamplingParams, ChatPlan]:
    return planner.params_and_plan(asked(**fields), params_of)


def test_requests_that_differ_in_messages_and_streaming_share_parameters_and_plan(planner: AnswerPlanner) -> None:
    first = planned(planner, temperature=0.5, max_tokens=3)
    others = {"messages": [{"role": "user", "content": "bye"}], "stream": True, "stream_options": {"include_usage": True}, "model": "m"}
    again = planned(planner, max_tokens=3, temperature=0.5, user="somebody", **others)
    assert again[0] is first[0] and again[1] is first[1]
    internal = planner.params_and_plan(ChatRequest(messages=MESSAGES, max_tokens=3, temperature=0.5), params_of)
    assert internal[0] is first[0]


def test_every_field_makes_parameters_of_its_own(planner: AnswerPlanner) -> None:
    for name, values in PLAIN.items():
        for value in [*values, None, *values]:
            params, plan = planned(planner, **{name: value})
            request = asked(**{name: value})
            assert params == params_of(request), (name, value)
            assert plan.parses_reasoning == bool(request.parse_reasoning)


def test_what_is_no_plain_value_is_planned_each_time(planner: AnswerPlanner) -> None:
    for name, value in COMPOSED.items():
        try:
            assert planned(planner, **{name: value})[0] is not planned(planner, **{name: value})[0], name
        except ApiError:
            assert name == "tool_choice"  # without tools


def test_a_wrong_value_is_refused_each_time(planner: AnswerPlanner) -> None:
    for _ in range(2):
        with pytest.raises(ApiError, match="'n' is 65"):
            planned(planner, n=65)
        with pytest.raises(ApiError, match="'reasoning_budget' is 0"):
            planned(planner, reasoning_budget=0)


def test_the_plans_that_are_kept_are_bounded(planner: AnswerPlanner) -> None:
    for seed in range(1000):
        planned(planner, seed=seed)
    assert len(planner._remembered) <= answer_plan._MAX_REMEMBERED
