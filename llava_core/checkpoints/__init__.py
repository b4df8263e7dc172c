"""Checkpoints: recognise what a folder holds, load it into transformers' classes, describe and convert it."""
