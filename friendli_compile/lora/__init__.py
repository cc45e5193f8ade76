"""LoRA adapters on the compile side: `--fuse-lora` merges them into the checkpoint before anything else reads it."""
