"""A model's chat template: messages to the prompt text that the model was trained on.

Templates are Jinja as Hugging Face defines it: `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop controls and
the `{% generation %}` block. They come with the model, so they run in Jinja's immutable sandbox with a bound on the output; a request can
pass variables to a template but never a template.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_trim
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import ConfigError
from .tokenizer import SPECIAL_TOKEN_NAMES, Tokenizer, read_json, unused_mark

MAX_PROMPT_CHARS = 16 * 2**20
_TAIL_CHARS = 256
_FUNCTIONS = ("raise_exception", "strftime_now")
RESERVED_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt", *_FUNCTIONS, *SPECIAL_TOKEN_NAMES})
"""Variables that the server sets; `chat_template_kwargs` may not replace them."""


class ChatTemplateError(ValueError):
    """The template refused the messages or failed on them. The message says what the template said."""


class ChatTemplate:
    """One compiled template. `render` is safe to call from several threads."""

    def __init__(self, source: str, special_tokens: dict[str, str], *, where: str = "chat template") -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.filters["trim"] = _trim
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template does not compile: {error.message}",
                where=f"{where}, line {error.lineno}",
                hint="fix the template in the checkpoint and compile again",
            ) from None
        self._constants = {**self._template.globals, **special_tokens, **dict.fromkeys(("documents", "messages", "tools"))}
        self.source = source
        tree = environment.parse(source)
        self._leaves_context = not any(tree.find(kind) for kind in (nodes.Block, nodes.Extends, nodes.EvalContextModifier))
        self._spare_contexts: list[Context] = []
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        """Names that the template reads, those that the server sets among them."""

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt text. Raises ChatTemplateError when the template refuses the messages, fails on them or writes too much."""
        given = self._constants.copy()
        given["messages"], given["tools"], given["add_generation_prompt"] = messages, tools, add_generation_prompt
        if variables:
            shadowed = RESERVED_NAMES.intersection(variables)
            if shadowed:
                raise ChatTemplateError(f"template variable '{min(shadowed)}' is set by the server")
            given |= variables
        context = self._context_of(given)
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.root_render_func(context):  # `generate` without its wrappers
                num_chars += len(part)
                if num_chars > MAX_PROMPT_CHARS:
                    raise ChatTemplateError(f"the rendered prompt is longer than {MAX_PROMPT_CHARS} characters")
                parts.append(part)
        except SecurityError:
            raise ChatTemplateError("the chat template tried something that the sandbox forbids") from None
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template refused the messages: {error.message}") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError, ZeroDivisionError) as error:
            if isinstance(error, ChatTemplateError):
                raise
            raise ChatTemplateError(f"the chat template failed on the messages: {type(error).__name__}: {error}") from None
        if self._leaves_context:
            self._give_back(context)
        return "".join(parts)

    def _context_of(self, given: dict[str, Any]) -> Context:
        """A context that no template has seen, or that is as good: making one takes longer than what most templates do with it."""
        try:
            context = self._spare_contexts.pop()
        except IndexError:
            template = self._template
            return template.environment.context_class(template.environment, given, template.name, template.blocks)
        context.parent = given
        return context

    def _give_back(self, context: Context) -> None:
        context.parent = self._constants
        context.vars.clear()
        context.exported_vars.clear()
        self._spare_contexts.append(context)


def load_chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """chat_template.jinja, else `chat_template` of tokenizer_config.json (a string, or the `default` of a list). None without one."""
    path = folder / "chat_template.jinja"
    special_tokens = template_tokens(tokenizer)
    if path.is_file():
        return read_chat_template(path, tokenizer)
    source = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source if isinstance(entry, dict) and {"name", "template"} <= entry.keys()}
        source = named.get("default")
    return ChatTemplate(source, special_tokens, where=str(folder / "tokenizer_config.json")) if isinstance(source, str) else None


def read_chat_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """A template of a file of its own. Raises ConfigError."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template cannot be read: {error}", where=str(path), hint="give a Jinja template in UTF-8") from None
    return ChatTemplate(source, template_tokens(tokenizer), where=str(path))


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    *,
    variables: dict[str, Any] | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids of a conversation up to the assistant's turn. What messages and tools spell like special tokens stays text.

    Raises ChatTemplateError.
    """
    return encode_prompt(template, tokenizer, messages, variables=variables, tools=tools)[0]


def encode_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    *,
    variables: dict[str, Any] | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], str]:
    """As `encode_chat`, with the end of the prompt's text."""
    if not (variables or tools) and not tokenizer.may_spell_special(messages):
        text = template.render(messages)
        return tokenizer.encode(text, add_special_tokens=False), text[-_TAIL_CHARS:]
    mark = unused_mark(json.dumps([messages, variables, tools], ensure_ascii=False))
    if mark is None:
        raise ChatTemplateError("the messages use every Unicode non-character")
    marked = [{key: value if key == "role" else tokenizer.mark_special_text(value, mark) for key, value in msg.items()} for msg in messages]
    text = template.render(
        marked, tools=tokenizer.mark_special_text(tools, mark), variables=tokenizer.mark_special_text(variables or {}, mark)
    )
    return tokenizer.encode_marked(text, mark), text[-_TAIL_CHARS:]


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens by name that a template may write."""
    return dict(tokenizer.special_tokens)


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks assistant text for training; when serving, it is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _trim(value: Any, chars: str | None = None) -> str:
    """Jinja's, without a call for what is a text already."""
    return value.strip(chars) if type(value) is str else do_trim(value, chars)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
