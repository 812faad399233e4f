"""The command line: one verb a file, which parses, makes one call and prints. The one place where errors become exit codes.

Imports whatever is below it, late: `aot --help` loads no torch.
"""
