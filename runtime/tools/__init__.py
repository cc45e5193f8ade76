"""How a model writes tool calls and reasoning, found out from its chat template, and how to read and to enforce it.

dialect.py    template rendered with synthetic calls → what is around name and arguments      grammar.py   dialect + functions → a grammar
parser.py     streamed text → content and calls, however the stream is cut                    reasoning.py the same for reasoning
request.py    `tools`, `tool_choice` of a request                                             check.py     `fmo check-template`
channels.py, channel_parser.py, channel_grammar.py   the same three for answers in several messages, each with a channel in its header
"""
