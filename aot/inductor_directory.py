"""The directory in which Inductor keeps what it compiled."""

INDUCTOR_DIRECTORY = "TORCHINDUCTOR_CACHE_DIR"
