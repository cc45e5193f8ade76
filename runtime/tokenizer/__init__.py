"""Text at the edges of the engine: tokenizer, streaming detokenizer, stop strings, chat templates.

Nothing is imported here: take `tokenizer.tokenizer`, `tokenizer.sample_text` and `tokenizer.chat_template` where they are needed.
"""
