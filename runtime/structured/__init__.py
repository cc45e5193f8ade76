"""Structured outputs: what a request may constrain its answer to, and the token masks that keep it there.

response_format.py  the field of a request → a grammar              json_schema.py  which keywords are followed, ignored, refused
regex_rules.py      patterns as the API defines them                finite_value.py  schemas that only an endless text satisfies
constraint.py       grammar → compiled constraint → a mask a token  mask_feeder.py   computes the masks beside the running model

Nothing is imported here; llguidance is loaded by the first constraint.
"""
