"""The engine that runs transformers models itself: packed continuous batching with streaming and reused prefixes."""
