"""The OpenAI-compatible HTTP server over one engine. Importing the package loads nothing; `server.serve.serve` runs it.

app.py         routes, authentication, health            fields.py      request fields: types, what is refused, what is ignored
generation.py  one request on the engine                 params.py      fields → SamplingParams, with the server's limits
chat.py completions.py text_endpoints.py                 http.py        bodies in, JSON and event streams out
bridge.py      engine thread ⇄ event loop                serve.py       sockets, signals, start and drain
"""
