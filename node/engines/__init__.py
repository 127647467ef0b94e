"""Engines: code that loads and runs checkpoints. They are blocking, know nothing of HTTP, asyncio or the catalog, and
run only inside the worker process. Torch and diffusers are imported nowhere else in the node.
"""
