"""`aquatint bench router`: what the router costs, beside nginx and LiteLLM in front of the same nodes, in turns, in one call.

    command.py     the command and its tables
    targets.py     what is measured: processes that stand before the nodes
    stub_node.py   a node without a device, a process of its own, as light as Python allows
    load.py        the load: answers of several sizes, uploads, as many connections as told
    behaviour.py   what happens when clients leave, read nothing, and when nodes reset or refuse
    processes.py   CPU time and memory of a process and its children

Everything listens on 127.0.0.1. What is measured runs on one core, nodes and load on another. A figure of a shared
machine says little, so each round visits every target in random order, and medians over rounds are compared.
"""
