"""The offline API on the scripted model: what goes in comes out, alone or together, whole or streamed."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from friendli_runtime import LLM, SamplingParams
from friendli_runtime.errors import ArtifactError
from friendli_runtime.sampling import InvalidSamplingParams
from models.scripted import script_tag
from server.served import scripted_artifact

GREEDY = SamplingParams(temperature=0)
GO = "<|go|>"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(scripted_artifact(), num_threads=1) as opened:
        yield opened


def test_one_text_gives_one_output(llm: LLM) -> None:
    prompt = script_tag("héllo 🙂") + GO
    (output,) = llm.generate(prompt, GREEDY)
    assert output.prompt == prompt and output.prompt_token_ids == llm.tokenizer.encode(prompt)
    assert output.text == output.outputs[0].text
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("héllo 🙂", "stop")
    assert output.outputs[0].token_ids == llm.tokenizer.encode("héllo 🙂", add_special_tokens=False)


def test_texts_and_token_ids_give_outputs_in_order(llm: LLM) -> None:
    prompts = [script_tag(f"answer {i}" * (1 + i % 3)) + GO for i in range(20)]
    expected = [f"answer {i}" * (1 + i % 3) for i in range(20)]
    assert [output.outputs[0].text for output in llm.generate(prompts, GREEDY)] == expected
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    outputs = llm.generate(ids, GREEDY)
    assert [output.outputs[0].text for output in outputs] == expected and outputs[0].prompt is None
    assert llm.generate(ids[0], GREEDY)[0].outputs[0].text == expected[0]


def test_a_stream_joins_to_the_whole_answer(llm: LLM) -> None:
    deltas = list(llm.stream(script_tag("héllo 🙂 world") + GO, GREEDY))
    assert "".join(delta.text for delta in deltas) == "héllo 🙂 world" and deltas[-1].finish_reason == "stop"
    assert all("\ufffd" not in delta.text for delta in deltas)


def test_leaving_a_stream_early_frees_the_engine(llm: LLM) -> None:
    for delta in llm.stream("abc", SamplingParams(temperature=0, ignore_eos=True)):
        assert delta.num_tokens == 1
        break
    assert llm.generate(script_tag("fine") + GO, GREEDY)[0].outputs[0].text == "fine"


def test_the_logprobs_of_a_prompt_are_those_of_an_answer_with_the_same_tokens(llm: LLM) -> None:
    ids = llm.tokenizer.encode("héllo 🙂 world, once more")
    forced = SamplingParams(forced_output_tokens=tuple(ids[1:]), max_tokens=len(ids) - 1, logprobs=3)
    expected = llm.generate(ids[:1], forced)[0].outputs[0].logprobs
    assert expected is not None
    for ngram_size in (0, 3):
        with LLM(scripted_artifact(), num_threads=1, max_num_seqs=1, max_num_tokens=8, ngram_size=ngram_size) as narrow:
            outputs = narrow.generate([ids, ids[:1]], SamplingParams(max_tokens=2, n=2, prompt_logprobs=3))
        found = outputs[0].prompt_logprobs
        assert found is not None and outputs[1].prompt_logprobs is None
        assert [(one.token_id, one.logprob, one.top) for one in found] == [(one.token_id, one.logprob, one.top) for one in expected]
    assert llm.generate(ids, SamplingParams(max_tokens=1))[0].prompt_logprobs is None
    text = llm.tokenizer.decode(ids)
    for one in found:
        shown = llm.tokenizer.token_bytes(one.token_id)
        assert not shown.isascii() or one.token_id in llm.tokenizer.special_ids or text.startswith(shown.decode(), one.text_offset)


def test_a_chat_answers_the_last_message(llm: LLM) -> None:
    assert llm.has_chat_template
    assert llm.chat([{"role": "user", "content": script_tag("hi there")}], GREEDY).outputs[0].text == "hi there"


def test_each_prompt_may_have_its_own_params(llm: LLM) -> None:
    prompt = script_tag("hello world") + GO
    params = [SamplingParams(temperature=0, max_tokens=3), SamplingParams(temperature=0, stop=("wor",)), SamplingParams(temperature=0, n=2)]
    outputs = llm.generate([prompt] * 3, params)
    assert [sample.text for output in outputs for sample in output.outputs] == ["hel", "hello ", "hello world", "hello world"]
    assert [sample.finish_reason for sample in outputs[0].outputs] == ["length"]
    with pytest.raises(ValueError, match="2 SamplingParams"):
        llm.generate([prompt] * 3, params[:2])


def test_a_seed_repeats_an_answer_whatever_runs_beside_it(llm: LLM) -> None:
    params = SamplingParams(temperature=50, max_tokens=12, seed=42)
    alone = llm.generate("abc", params)[0].outputs[0].token_ids
    together = llm.generate(["x" * i for i in range(1, 9)] + ["abc"], params)[-1].outputs[0].token_ids
    assert together == alone
    free = llm.generate("abc", SamplingParams(temperature=50, max_tokens=12))[0].outputs[0]
    again = llm.generate("abc", SamplingParams(temperature=50, max_tokens=12, seed=free.seed))[0].outputs[0]
    assert again.token_ids == free.token_ids


def test_logprobs_are_given_when_asked_for(llm: LLM) -> None:
    output = llm.generate(script_tag("ab") + GO, SamplingParams(temperature=0, logprobs=2))[0].outputs[0]
    assert output.logprobs is not None and [entry.token_id for entry in output.logprobs] == output.token_ids
    assert all(entry.top[0][0] == entry.token_id and len(entry.top) == 2 and entry.logprob <= 0 for entry in output.logprobs)
    assert llm.generate("x", SamplingParams(max_tokens=1))[0].outputs[0].logprobs is None


@pytest.mark.parametrize("params", [SamplingParams(temperature=-1), SamplingParams(max_tokens=10**6), SamplingParams(top_p=2)])
def test_bad_values_are_refused_by_name(llm: LLM, params: SamplingParams) -> None:
    with pytest.raises(InvalidSamplingParams):
        llm.generate("abc", params)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: object) -> None:
    with pytest.raises(ArtifactError):
        LLM(str(tmp_path))


def test_an_answer_keeps_to_its_format(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    json_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    follows, strays = (script_tag(text) + GO for text in ('{"a": 12}', "hello"))
    params = SamplingParams(temperature=0, response_format=json_format, max_tokens=300)
    assert llm.generate(follows, params)[0].text == '{"a": 12}'
    pattern = SamplingParams(temperature=0, response_format={"type": "regex", "schema": "[h-l]{2}[0-9]"}, n=2)
    outputs = llm.generate(strays, pattern)[0].outputs
    assert all(re.fullmatch("[h-l]{2}[0-9]", output.text) and output.finish_reason == "stop" for output in outputs)
    assert "".join(delta.text for delta in llm.stream(strays, replace(pattern, n=1))) == outputs[0].text


@pytest.mark.parametrize("response_format", [{"type": "regex", "schema": "(?=a)"}, {"type": "xml"}, {"type": "json_schema"}])
def test_a_format_that_cannot_be_followed_is_refused(llm: LLM, response_format: dict[str, str]) -> None:
    with pytest.raises(InvalidSamplingParams, match="response_format"):
        llm.generate("x", SamplingParams(response_format=response_format))
