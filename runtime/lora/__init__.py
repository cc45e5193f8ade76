"""Low-rank adapters in PEFT's format: read here, merged by the compiler (`--fuse-lora`) or applied at run time beside the base weights."""
