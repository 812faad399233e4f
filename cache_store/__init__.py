"""Content-addressed artifacts: bytes and names. Knows nothing of torch or of `aot`."""
