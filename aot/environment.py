"""The environment variables that this package and torch share with their user, by name."""

from collections.abc import Mapping
from pathlib import Path

GRAPH_CACHE = "NEXFORT_GRAPH_CACHE"  # whether and where artifacts are read: unset or 0, 1, or a store's location
INDUCTOR_DIRECTORY = "TORCHINDUCTOR_CACHE_DIR"  # where Inductor keeps what it compiled
SIGNING_KEY = "AOT_SIGNING_KEY"  # a file: the ed25519 key that signs beside the machine's own
SIGNING_PEM = "AOT_SIGNING_PEM"  # the same key itself: how a secret reaches a worker that has no such file
RUN = "AOT_RUN"  # set by `aot run`: the folder that a served program leaves its proof in, and finds what was asked for
WATCH = "AOT_WATCH"  # set by `aot record`: the folder that a watched program leaves its Records in
BUILD_CPUS = "AOT_BUILD_CPUS"  # how many processors a build uses at once, where that is fewer than it may


def signing_key(environ: Mapping[str, str]) -> Path | None:
    """The file that SIGNING_KEY names, if any."""
    return Path(path).expanduser() if (path := environ.get(SIGNING_KEY)) else None
