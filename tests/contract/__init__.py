"""Clients of other makers and other versions, run as programs against one server: the router before a stand-in node.

`python -m tests.contract.server PORT HOME` serves; each program takes its address and a key, checks what its client makes of
the server, and needs nothing but its client: `python_sdk.py`, `node_sdk.mjs` (OpenAI's own SDKs), `langchain_python.py`,
`langchain.mjs`, `llama_index_python.py`, `litellm_python.py`, `ai_sdk.mjs` (Vercel's). The suite runs the SDK that is
installed; the gate adds older and newer ones and the clients of other makers, each from its registry and apart.
"""
