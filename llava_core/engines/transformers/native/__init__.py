"""A decoder's layers in C, built where they run: packed steps without the cost of a thousand small operations."""
