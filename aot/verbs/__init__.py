"""What `aot` does, in Python: the command line and `import aot` are two ways to the same verbs.

Imports everything but the command line.
"""
