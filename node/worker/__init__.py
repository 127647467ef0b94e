"""The worker: the child process that owns the device, and the node's handle on it.

A process of its own, because Python that launches kernels holds the interpreter, native code can abort, and memory
leaks at every change of model: so `/health` answers during a denoise, a crash is one failed attempt with a named
cause, and a hung kernel can be killed. It costs the bytes of each picture a trip through a socket.

`python -m node.worker` is the child. Both sides talk over an unnamed socket pair in frames of JSON and raw bytes
(`frames.py`): nothing here is ever unpickled. The child ends at once when its end of the pair closes, so a node that
is killed leaves no orphan holding the device.
"""
