"""The OpenAI-compatible HTTP server over one engine. Importing the package loads nothing; `server.serve.serve` runs it.

app.py         routes, authentication, health              http.py      bodies in, JSON and event streams out
fields.py      request fields: read, refused, ignored      params.py    fields → SamplingParams, with the limits of limits.py
auth.py        API keys                                    openapi.py   the document and the page of the API
answer_plan.py formats, tools, reasoning → a constraint    reading.py   one choice: reasoning, content, calls
messages.py    /v1/messages                                responses.py /v1/responses
bad_stop.py    stop phrases and bad words for every request
chat.py        messages → prompt, deltas → chat answers    completions.py   the same for plain text and token ids
generation.py  one request on the engine                   bridge.py    engine thread ⇄ event loop
serve.py       ports, signals, start and drain             protocol.py  bounds of an HTTP head; errors.py: the error body
"""
