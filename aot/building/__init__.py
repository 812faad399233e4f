"""From a request to an artifact in a store: the plan of what is to be compiled, the graphs, their check against eager, the packing.

Imports `serving` (a build checks a graph exactly as it will be served) and all below it.
"""
