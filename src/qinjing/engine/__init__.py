"""The loop and its machinery; no medicine in it."""
