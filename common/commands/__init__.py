"""Subcommands of `aquatint` that need neither router nor node code: they run processes, or speak HTTP to a router.

Heavy imports stand inside the functions, so that `aquatint --help` answers at once.
"""
