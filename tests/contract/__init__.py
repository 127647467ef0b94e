"""Clients of other makers and other versions, run as programs against one server: the router before a stand-in node.

`python -m tests.contract.server PORT` serves; `python_sdk.py` and `node_sdk.mjs` take its address and check what their
SDK makes of it. The suite runs them with the SDKs that are installed; the gate adds older and newer ones.
"""
