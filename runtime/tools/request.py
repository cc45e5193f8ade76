"""`tools`, `tool_choice` and `parallel_tool_calls` of a chat request, checked.

none: the model does not know of the tools    auto: it may call    required: it must    {"function": {"name"}}: it must call that one
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..structured.errors import InvalidConstraint
from ..structured.json_schema import PatternBudget, checked_schema
from ..structured.response_format import ConstraintLimits

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FUNCTION_KEYS = {"name": str, "description": str, "parameters": dict, "strict": bool}
CHOICES = ("none", "auto", "required")


class InvalidTools(ValueError):
    """`param` is the field of the request to blame; `is_type` tells a wrong type from a wrong value."""

    def __init__(self, message: str, param: str, *, is_type: bool = False) -> None:
        super().__init__(message)
        self.param = param
        self.is_type = is_type


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """`tools`: as the template gets them. `schemas`: those of the functions that may be called, checked and reduced."""

    tools: list[dict[str, Any]]
    schemas: Mapping[str, dict[str, Any]]
    is_required: bool = False
    is_parallel: bool = True


def tool_request(
    tools: list[dict[str, Any]] | None, choice: Any, parallel: bool | None, max_tools: int, limits: ConstraintLimits
) -> ToolRequest | None:
    """None when the model may not call anything. Raises InvalidTools, InvalidConstraint for a schema."""
    if not tools and choice is None:
        return None
    given = [_checked_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    if len(given) > max_tools:
        raise InvalidTools(f"'tools' has {len(given)} entries, at most {max_tools} are allowed", "tools")
    names = [tool["function"]["name"] for tool in given]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidTools(f"two tools have the name '{twice}'", "tools")
    chosen = _chosen(choice)
    if chosen == "none" or (not given and chosen == "auto"):
        return None
    if not given:
        raise InvalidTools("'tool_choice' asks for a call, but there are no 'tools'", "tool_choice")
    if chosen not in CHOICES and chosen[1:] not in names:
        raise InvalidTools(f"'tool_choice' names the function '{chosen[1:][:64]}', which is not among 'tools'", "tool_choice")
    callable_tools = given if chosen in CHOICES else [tool for tool in given if tool["function"]["name"] == chosen[1:]]
    patterns = PatternBudget(limits.max_patterns)
    schemas = {tool["function"]["name"]: _schema(tool["function"], limits, patterns) for tool in callable_tools}
    return ToolRequest(given, schemas, is_required=chosen != "auto", is_parallel=parallel is not False and chosen in CHOICES)


def translated_tools(
    tools: list[dict[str, Any]] | None, translate: Callable[[dict[str, Any], str], dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """Tools of another API in the shape of chat; `translate` gets each with its place in the request."""
    return None if tools is None else [translate(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _checked_tool(tool: Any, where: str) -> dict[str, Any]:
    """As templates expect it: every key there, no null."""
    if not isinstance(tool, dict):
        raise InvalidTools(f"'{where}' has the wrong type: expected an object", "tools", is_type=True)
    if unknown := next((key for key, value in tool.items() if key not in ("type", "function") and value is not None), None):
        raise InvalidTools(f"unknown field '{where}.{unknown[:64]}'", "tools", is_type=True)
    if tool.get("type", "function") != "function":
        raise InvalidTools(f"'{where}.type' is {str(tool['type'])[:40]!r}, expected 'function'", "tools")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidTools(f"'{where}.function' is missing, expected {{name, parameters}}", "tools", is_type=True)
    for key, value in function.items():
        if key not in _FUNCTION_KEYS:
            raise InvalidTools(f"unknown field '{where}.function.{key[:64]}'", "tools", is_type=True)
        if value is not None and not isinstance(value, _FUNCTION_KEYS[key]):
            raise InvalidTools(
                f"'{where}.function.{key}' has the wrong type: expected {_FUNCTION_KEYS[key].__name__}", "tools", is_type=True
            )
    name = function.get("name")
    if name is None or not _NAME.fullmatch(name):
        raise InvalidTools(f"'{where}.function.name' is {str(name)[:80]!r}, expected 1 to 64 of A-Z a-z 0-9 _ -", "tools")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": function.get("description") or "", "parameters": parameters}}


def _chosen(choice: Any) -> str:
    """`none`, `auto`, `required`, or '=' and the name of a function."""
    if choice is None:
        return "auto"
    if isinstance(choice, str) and choice in CHOICES:
        return choice
    if isinstance(choice, dict) and choice.get("type", "function") == "function":
        function = choice.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return "=" + function["name"]
    shown = json.dumps(choice)[:60]
    raise InvalidTools(f"'tool_choice' is {shown}, expected {', '.join(CHOICES)} or {{type, function: {{name}}}}", "tool_choice")


def _schema(function: dict[str, Any], limits: ConstraintLimits, patterns: PatternBudget) -> dict[str, Any]:
    """The schema of the arguments, always one of an object."""
    schema = function["parameters"]
    if schema.get("type", "object") != "object":
        raise InvalidConstraint(f"the parameters of '{function['name']}' are of type {schema['type']!r}, expected 'object'", "tools")
    num_bytes = len(json.dumps(schema).encode())
    if num_bytes > limits.max_schema_bytes:
        raise InvalidConstraint(f"the schema has {num_bytes} bytes, at most {limits.max_schema_bytes} are allowed", "tools")
    whole = {**schema, "type": "object"} if "$ref" not in schema else schema
    if not schema.keys() - {"type", "description", "title"}:
        whole["properties"] = {}
    try:
        reduced = checked_schema(whole, max_subschemas=limits.max_subschemas, patterns=patterns, param="tools")
    except InvalidConstraint as error:
        raise InvalidConstraint(f"function '{function['name']}': {error}", "tools") from None
    return json.loads(reduced)
