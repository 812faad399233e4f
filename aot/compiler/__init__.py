"""What compiles: Inductor, the C++ and CUDA tools that it needs, and the processes and environments that it runs in.

Imports `shipping` and all below it.
"""
