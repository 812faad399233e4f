"""The start-up ledger: what each way of starting a pipeline costs, measured in processes of its own and told as tables or a page.

Imports `building` and all below it.
"""
