"""Many builds: a matrix of models, GPUs, torch versions, modes and sizes, built on this machine, on Ray, or as jobs of the Hub.

Imports `verbs` and all below it. Each build is a child process, `aot build` itself; nothing here imports torch.
"""
