"""Engines: code that loads and runs checkpoints. They are blocking and know nothing of HTTP, asyncio or the catalog.

They run only inside the worker process: the node's own process never imports torch.
"""
