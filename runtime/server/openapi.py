"""GET /openapi.json: the API as OpenAPI 3.1, made from the request types themselves; GET /docs: the same as a page for people.

Bounds that depend on the model (context, vocabulary) are not in it; docs/http-api.md says more about each field.
"""

from __future__ import annotations

import html
from typing import Any

import msgspec

from .. import __version__
from .embeddings import EmbeddingsRequest
from .fields import AdapterRequest, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .messages import CountTokensRequest, MessagesRequest
from .responses import ResponsesRequest

POSTS: dict[str, tuple[type[msgspec.Struct], str, bool]] = {
    # path → (request, what it does, whether it streams)
    "/v1/chat/completions": (ChatRequest, "The assistant's next message.", True),
    "/v1/completions": (CompletionRequest, "The continuation of a text or of token ids.", True),
    "/v1/messages": (MessagesRequest, "A chat in Anthropic's shape.", True),
    "/v1/messages/count_tokens": (CountTokensRequest, "Tokens of the prompt of such a chat.", False),
    "/v1/responses": (ResponsesRequest, "A chat in the shape of OpenAI's responses.", True),
    "/v1/embeddings": (EmbeddingsRequest, "Vectors of texts or of token ids, of models that give embeddings.", False),
    "/v1/tokenize": (TokenizeRequest, "Token ids of a text.", False),
    "/v1/detokenize": (DetokenizeRequest, "Text of token ids.", False),
    "/v1/adapters": (AdapterRequest, "Loads a LoRA adapter (with --adapter-dir).", False),
}
GETS = {
    "/v1/models": "The model that is served, and its adapters.",
    "/health": "200, or 503 while draining or full.",
    "/health/ready": "As /health.",
    "/health/live": "200, or 503 when the engine is stuck.",
}
NAMED: dict[str, tuple[str, str]] = {
    # path that ends in the name of a model → (method, what it does)
    "/v1/models/{name}": ("get", "The model that is served, or one of its adapters."),
    "/v1/adapters/{name}": ("delete", "Unloads a LoRA adapter (with --adapter-dir); requests that use it end as they would."),
}
_STATUSES = {
    "400": "Not JSON; a missing, unknown or mistyped field; a schema or pattern that cannot be followed",
    "401": "No valid API key",
    "403": "Not allowed by the operator",
    "404": "No such route or model",
    "408": "The body came too slowly",
    "409": "The name of an adapter is taken",
    "413": "The body is too large",
    "415": "A compressed body",
    "422": "A value out of its bounds, or a field that is not honoured",
    "429": "The queue is full",
    "500": "A failure of the server",
    "503": "Shutting down",
    "504": "The request took too long",
}


def openapi(model: str) -> dict[str, Any]:
    """The document for a server of `model`."""
    references, components = msgspec.json.schema_components(
        [request for request, _, _ in POSTS.values()], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for (path, (_, summary, streams)), reference in zip(POSTS.items(), references, strict=True):
        body = {"required": True, "content": {"application/json": {"schema": reference}}}
        paths[path] = {"post": {"summary": summary, "operationId": _operation(path), "requestBody": body, "responses": _answers(streams)}}
    for path, summary in GETS.items():
        paths[path] = {"get": {"summary": summary, "operationId": _operation(path), "responses": _answers(streams=False)}}
    for path, (method, summary) in NAMED.items():
        operation = {"summary": summary, "operationId": f"{method}_{_operation(path)}", "responses": _answers(streams=False)}
        paths[path] = {method: {**operation, "parameters": [_NAME]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"fmo serve: {model}", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**components, "Error": _ERROR}, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def page(model: str) -> bytes:
    """The document as HTML, with nothing fetched from elsewhere."""
    document = openapi(model)
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>")
            if path in POSTS:
                rows.append(_fields(document["components"]["schemas"][POSTS[path][0].__name__]))
    style = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.1em 1em .1em 0;vertical-align:top}"
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(model)}</title><style>{style}</style>"
    title = f"<h1>{html.escape(document['info']['title'])}</h1><p><a href=/openapi.json>openapi.json</a></p>"
    return (head + title + "".join(rows)).encode()


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, value in schema["properties"].items():
        note = "required" if name in required else ""
        rows.append(f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_kind(value))}<td>{note}")
    return f"<table>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A type in words: `integer`, `list of string`, `string or list of string`."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return schema.get("type", schema.get("$ref", "any").rpartition("/")[2])


def _answers(streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {status: {"description": what, "content": failure} for status, what in _STATUSES.items()}
    return {"200": {"description": "The answer", "content": content}, **failures}


def _operation(path: str) -> str:
    return path.strip("/").replace("v1/", "").replace("/{name}", "").replace("/", "_")


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_EVENT = {
    "description": "Of each event: JSON as text, at the end maybe [DONE]",
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}
_ERROR = {
    "type": "object",
    "required": ["type", "error", "message"],
    "properties": {
        "type": {"const": "error"},
        "message": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
        "detail": {"type": "array", "items": {"type": "object"}},
    },
}
