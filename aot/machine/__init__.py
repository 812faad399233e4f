"""Where graphs must run: the table of GPUs, targets, devices real or simulated, and the settings of a process.

Imports `model` and all below it.
"""
