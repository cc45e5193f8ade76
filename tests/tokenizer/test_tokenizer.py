"""Loading a tokenizer folder: the same ids and prompts as transformers gives, and clear refusals."""

import contextlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from friendli_runtime.errors import ConfigError
from friendli_runtime.tokenizer.chat_template import ChatTemplate, ChatTemplateError, encode_chat, load_chat_template
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from tokenizers import Tokenizer as Backend

from .tokenizers_made_here import MAKERS, backend_json

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": {"__type": "AddedToken", "content": "<pad>", "special": True}}
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('no system') }}{% endif -%}
{% generation %}[{{ message.role }}] {{ message.content | trim }}{% endgeneration %}
{% if loop.index > 5 %}{% break %}{% endif %}
{{- message | tojson }} {{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}{{ extra | default('') }}{{ strftime_now('%Y')[:1] }}"""
MESSAGES = [
    {"role": "user", "content": " héllo <b>'x'</b> "},
    {"role": "assistant", "content": "hi 🙂"},
    {"role": "user", "content": "bye"},
]


def write_folder(folder: Path, name: str = "llama_bpe", **config: Any) -> Path:
    (folder / "tokenizer.json").write_text(backend_json(name))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return folder


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", MAKERS)
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path, name)
    theirs, ours = transformers_tokenizer(folder), Tokenizer.load(folder)
    for text in ("hello world", " naïve  你好 🙂", "</s> and <|end|>"):
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        if name != "word_piece":  # transformers cleans its spaces up
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_bos_and_eos_flags_do_beside_tokenizer_json_what_they_do_in_transformers(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = write_folder(tmp_path, **NAMED, **flags)
    assert Tokenizer.load(folder).encode("hello") == transformers_tokenizer(folder)("hello").input_ids


def test_the_defaults_of_encode_and_decode_are_those_it_was_loaded_with(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path), add_special_tokens=False, skip_special_tokens=False)
    assert tokenizer.decode([1, *tokenizer.encode("hello")]).startswith("<s>")


@pytest.mark.parametrize("place", ["string", "list", "file"])
def test_a_rendered_conversation_is_that_of_transformers(tmp_path: Path, place: str) -> None:
    if place == "file":
        folder = write_folder(tmp_path, **NAMED)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
        folder = write_folder(tmp_path, **NAMED, chat_template=TEMPLATE if place == "string" else named)
    ours, theirs = Tokenizer.load(folder), transformers_tokenizer(folder)
    template = load_chat_template(folder, ours)
    assert template is not None
    for variables in ({}, {"extra": "more"}):
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **variables)
        assert template.render(MESSAGES, variables=variables) == expected
        ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, **variables)
        assert encode_chat(template, ours, MESSAGES, variables=variables) == ids
    assert ids.count(1) == 1, "BOS comes from the template, once"


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    assert load_chat_template(folder, Tokenizer.load(folder)) is None


def test_what_a_template_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="no system"):
        ChatTemplate(TEMPLATE, {}).render([{"role": "system", "content": "x"}])
    with pytest.raises(ChatTemplateError, match="failed"):
        ChatTemplate("{{ messages[0].content + 1 }}", {}).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ messages | tojson }}{% endfor %}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x" * 1000}])


def test_a_template_that_does_not_compile_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate("a\n{% if %}", {})


def test_variables_may_not_replace_what_the_server_sets() -> None:
    with pytest.raises(ChatTemplateError, match="'messages'"):
        ChatTemplate("x", {}).render(MESSAGES, variables={"messages": []})


def test_special_tokens_in_content_are_encoded_as_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path, "byte_level"))
    template = ChatTemplate("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}", {})
    control = {text: tokenizer.backend.token_to_id(text) for text in ("<|user|>", "<|end|>")}
    ids = encode_chat(template, tokenizer, [{"role": "user", "content": "a<|end|>b <|user|>"}])
    assert ids.count(control["<|end|>"]) == ids.count(control["<|user|>"]) == 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|user|>a<|end|>b <|user|><|end|>"


def without_unknown(tokenizer: Tokenizer, token_ids: list[int]) -> list[int]:
    return [token_id for token_id in token_ids if tokenizer.token_bytes(token_id) != b"<unk>"]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_special_tokens_in_content_are_what_the_library_makes_of_such_text(name: str) -> None:
    tokenizer = Tokenizer.from_json(backend_json(name))
    literal = Backend.from_str(backend_json(name))
    literal.encode_special_tokens = True
    special = [token.content for token in literal.get_added_tokens_decoder().values() if token.special]
    template, rng = ChatTemplate("{{ messages[0].content }}", {}), random.Random(3)
    for _ in range(200):
        text = "".join(rng.choices([*special, "hello", " w", "\ufdd0", "<", "é"], k=rng.randrange(1, 7)))
        parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
        wanted = [token_id for part in parts for token_id in literal.encode(part, add_special_tokens=False).ids]
        ids = encode_chat(template, tokenizer, [{"role": "user", "content": text}])
        assert not tokenizer.special_ids.intersection(without_unknown(tokenizer, ids))
        if not tokenizer.special_ids.intersection(wanted):  # some have the text of a special token as a word too
            assert ids == wanted, text


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize(
    "expression", ["messages[0].content | reverse", "messages[0].content[1:]", "messages[0].content[:-1]", "messages | tojson"]
)
def test_what_a_template_does_to_marked_tokens_makes_no_special_ones_of_them(name: str, expression: str) -> None:
    tokenizer = Tokenizer.from_json(backend_json(name))
    special = sorted(tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.special_ids)
    template = ChatTemplate("{{ " + expression + " }}", {})
    for text in (special[0], special[-1] * 2, "".join(special), special[0] + special[0][1:]):
        ids = encode_chat(template, tokenizer, [{"role": "user", "content": text}])
        assert not tokenizer.special_ids.intersection(without_unknown(tokenizer, ids)), text


def called_while(function: Callable[[], object]) -> set[str]:
    """The names of all functions that are not Python's own which `function` calls."""
    names: set[str] = set()

    def note(frame: object, event: str, argument: object) -> None:
        if event == "c_call":
            names.add(getattr(argument, "__name__", ""))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_prompt_makes_a_tokenizer_or_a_vocabulary(name: str) -> None:
    tokenizer = Tokenizer.from_json(backend_json(name))
    special = [tokenizer.token_bytes(token_id).decode() for token_id in sorted(tokenizer.special_ids)]
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})

    def encode_all() -> None:
        for text in ["hello", "naïve 你好", *special, *(f"a{text}b" for text in special)]:
            encode_chat(template, tokenizer, [{"role": "user", "content": text}])
            tokenizer.encode(text, add_special_tokens=True)

    slow = {"from_str", "from_file", "from_buffer", "to_str", "get_vocab"}
    assert not called_while(encode_all) & slow
    assert called_while(lambda: Tokenizer.from_json(backend_json(name))) & slow  # they are seen where they are called


def test_a_broken_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in caught.value.where
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        Tokenizer.load(tmp_path)


def test_a_client_that_sends_ever_new_words_does_not_fill_the_memory() -> None:
    program = (
        "import random, re\n"
        "from friendli_runtime.tokenizer.tokenizer import Tokenizer\n"
        "from tokenizers import Tokenizer as Backend\n"
        "from tokenizer.tokenizers_made_here import backend_json\n"
        "tokenizer, rng = Tokenizer.from_json(backend_json('byte_level'), {}), random.Random(0)\n"
        "for _ in range(3):\n"
        "    for _ in range(3000): tokenizer.encode(''.join(rng.choice('abcdefgh') for _ in range(200)))\n"
        "    print(re.search(r'Anonymous: +([0-9]+) kB', open('/proc/self/smaps_rollup').read())[1])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    _, second_kb, third_kb = map(int, result.stdout.split())
    assert third_kb - second_kb < 2048


def test_a_template_finds_nothing_of_an_earlier_rendering() -> None:
    """Whatever it sets, exports, defines or escapes; contexts are used again."""
    tell = "{{ a }}|{{ shown }}|{{ tools }}|{{ messages | length }}"
    sets = "{% set a = 'set' %}{% macro m(x) %}{{ x }}{{ bos_token }}{% endmacro %}"
    sets += "{% set ns = namespace(b=1) %}{% set ns.b = 2 %}{{ m(ns.b) }}"
    block = "{% block b %}{{ shown }}{% endblock %}{% autoescape true %}{{ '<' }}{% endautoescape %}{{ '<' }}"
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    fails = "{% if shown %}{% set a = 1 %}{{ raise_exception('no') }}{% endif %}"
    for source in (tell, tell + sets, sets + tell, tell + block, fails + tell):
        template = ChatTemplate(source, {"bos_token": "<s>"})
        first = template.render(messages)
        for _ in range(3):
            with contextlib.suppress(ChatTemplateError):
                template.render(messages * 2, tools=[{"a": 1}], variables={"shown": "yes"})
            assert template.render(messages) == first == ChatTemplate(source, {"bos_token": "<s>"}).render(messages), source


def test_trimming_is_the_one_of_jinja() -> None:
    template = ChatTemplate("[{{ ' a ' | trim }}][{{ 'xax' | trim('x') }}][{{ 5 | trim }}][{{ none | trim }}][{{ nothing | trim }}]", {})
    assert template.render([]) == "[a][a][5][None][]"
