"""Arguments that a dialect writes without quotes are kept to pattern and length, and end at the first closing mark."""

import json
from typing import Any

import pytest
from friendli_runtime.structured.constraint import ConstraintCompiler
from friendli_runtime.structured.response_format import ConstraintLimits
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tools.constraint import call_constraint
from friendli_runtime.tools.dialect import derived_dialect
from friendli_runtime.tools.parser import CallDelta, CallParser
from friendli_runtime.tools.request import ToolRequest, tool_request
from structured.random_model import eos_of, tokenizer_of

from .templates import END_TEXTS, GLM, MINIMAX, QWEN_CODER, SPECIALS

LIMITS = ConstraintLimits(2**18, 1024, 4096, 256)
UNQUOTED = {"qwen_coder": QWEN_CODER, "glm": GLM, "minimax": MINIMAX}


def request_of(schema: dict[str, Any]) -> ToolRequest:
    parameters = {"type": "object", "properties": {"q": schema}, "required": ["q"]}
    request = tool_request([{"type": "function", "function": {"name": "find", "parameters": parameters}}], "required", None, 8, LIMITS)
    assert request is not None
    return request


def accepts(name: str, schema: dict[str, Any], value: str) -> bool:
    """Whether a forced call may have this text as its argument, written as the template writes it."""
    template = ChatTemplate(UNQUOTED[name], SPECIALS)
    dialect = derived_dialect(template, END_TEXTS)
    tokenizer = tokenizer_of("byte_level")
    compiler = ConstraintCompiler(tokenizer, tokenizer.backend.get_vocab_size(), [eos_of("byte_level")])
    constraint = call_constraint(request_of(schema), dialect, compiler, [eos_of("byte_level")])
    assert constraint is not None and dialect.parameters is not None
    form = dialect.parameters
    names = {"name": "find", "arguments": f"{form.before}q{form.middle}{value}{form.after}"}
    text = dialect.start + "".join(part if isinstance(part, str) else names[part.value] for part in dialect.call) + dialect.end
    masks = constraint.sample()
    mask = constraint.first_mask
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), eos_of("byte_level")]:
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return False
        mask = masks.advance(token_id)
    parser = CallParser(dialect, {"find": {"type": "object", "properties": {"q": schema}}})
    found = "".join(item.arguments for item in [*parser.push(text), *parser.finish()] if isinstance(item, CallDelta))
    assert json.loads(found) == {"q": value}
    return True


@pytest.mark.parametrize("name", UNQUOTED)
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"maxLength": 5}, ["", "abcde", "a\nb", "</p"], ["abcdef", "🙂" * 6]),
        ({"minLength": 2, "maxLength": 3}, ["ab", "é🙂x"], ["a", "abcd"]),
        ({"minLength": 3}, ["abc", "a" * 50], ["", "ab"]),
        ({"pattern": "^[a-z]+/[0-9]{2}$"}, ["ab/12"], ["ab/1", "ab12", "x/12 "]),
        ({"pattern": "a*b|c", "maxLength": 3}, ["c", "aab"], ["aaab", "cc", ""]),
    ],
)
def test_text_without_quotes_has_its_pattern_and_length(name: str, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    schema = {"type": "string", **schema}
    assert [text for text in good if not accepts(name, schema, text)] == []
    assert [text for text in bad if accepts(name, schema, text)] == []
