"""Vision-language checkpoints, prompts and engines; knows nothing of HTTP servers or pages."""
