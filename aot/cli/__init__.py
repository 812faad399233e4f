"""The command line: one verb a file, each parse → one call → print. Importing it leaves torch unloaded."""
