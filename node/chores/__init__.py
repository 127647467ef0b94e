"""Long work on a node's files that routers ask for: bringing checkpoints, reading hashes.

    table.py      the chores of a node; each is a process, which can be ended at any moment and does not slow runs down
    __main__.py   that process: one chore, which tells of itself in lines of JSON

A chore has the name that whoever asks for it gives it: asking again changes nothing, and gives what is known. A node that
was started anew knows none, and is asked again; a pull then goes on where it stopped, and hashes that were read are known.
"""

from node.chores.table import Chores

__all__ = ["Chores"]
