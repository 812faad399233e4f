"""What a live module is: signatures of its calls, its fingerprint and weights; and what is done to it before it is compiled.

Imports `errors`, `choice`, `environment` and the store's names, nothing else of ours.
"""
