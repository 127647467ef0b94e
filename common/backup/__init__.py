"""Backups: the catalog's rows and the bytes of its pictures, in a folder from which either kind of database is made again.

    repository.py   the folder: snapshots, what they say of themselves, the lock
    rows.py         tables as files
    making.py       create, prune
    using.py        verify, restore

Decisions:

- A backup is a snapshot in a folder that holds many. Rows are written anew each time, as JSON lines that any program can
  read; the bytes of pictures are stored once by their SHA-256, whatever the number of snapshots that know them. A weekly
  backup so costs the week's pictures and not all of them. Costs: a snapshot alone is not a file that can be carried away;
  the folder is.
- The rows are those of one moment, read while everything works on. The bytes are copied afterwards: they are stored before
  the rows that name them, and nobody removes bytes that a row names.
- A snapshot appears under its name when all of it is on the disk, its manifest too. What a crash leaves has another name,
  and the next `prune` removes it.
- The secret key is not part of it: whoever finds a backup cannot talk to the nodes. Their tokens have to be set again where
  that key is lost. Keys of clients work on: only their hashes were ever kept.
"""

from common.backup.making import Progress, create, prune
from common.backup.repository import Manifest, Repository
from common.backup.using import Restored, restore, verify

__all__ = ["Manifest", "Progress", "Repository", "Restored", "create", "prune", "restore", "verify"]
