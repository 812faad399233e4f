"""Kinds of layer: what an artifact may hold. `spaces` is for others to load, `packages` is what others made."""

GRAPH, CACHE, SPACES, PACKAGES = "graph", "cache", "spaces", "packages"

PACKAGE = "package.pt2"  # a file of either of the latter, as torch and `spaces` call it
MAX_PACKAGE = 512 << 20  # bytes of one that others made; those of whole denoisers are of some megabytes
NO_SOURCE = b"// compiled; the source is not in this package\n"  # in the place of that of a package of ours
