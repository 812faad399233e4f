"""What is asked for: mode, options, shapes, and the recipe whose calls are kept.

Imports `machine` and all below it.
"""
