"""Run time: find the artifacts that fit live modules, verify and load them, answer calls, and fall back where nothing answers.

`nexfort` is the API. Imports `compiler` and all below it; torch's own compiler is imported only when something must be compiled.
"""
