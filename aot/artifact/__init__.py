"""What an artifact holds: key, shape book, ranges of sizes, golden outputs, quality certificate; and what opens one, trust included.

Imports `request` and all below it.
"""
