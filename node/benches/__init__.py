"""What the measuring commands share: a node as a process, the bare pipeline, and figures of both in turns.

process.py              a node of its own home
bare.py                 the same picture by a script of ten lines
figures.py              both beside one another: overhead, throughput, presets, batch curve, cancelling, memory
random_checkpoints.py   full-size checkpoints of random weights, for machines without a network
gpu.py                  `aquatint bench gpu`
"""
