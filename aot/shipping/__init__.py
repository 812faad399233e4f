"""What is told of artifacts to people: listings of a store, what a store offers this machine, the model card.

Imports `artifact` and all below it.
"""
