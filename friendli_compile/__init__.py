"""The compiler of fmo: from a Hugging Face model to an artifact. `friendli_compile.compile.compile_model` is the entry point."""
