"""Version of this package, also where only its source is on the path."""

VERSION = "0.1.0"
