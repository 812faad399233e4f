"""Content-addressed artifacts: bytes and names; FORMAT.md specifies them. Knows no model.

Imports nothing of ours but itself, in four steps: names and formats, whom to trust, stores, what moves between stores.
"""
