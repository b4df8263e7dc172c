"""Engines turn a request into a stream of chunks; one file or folder each."""
