"""What `serve.cli` is made of: where answers come from, the chat, the typed line, the screen."""
