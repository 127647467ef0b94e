"""A machine with many users: each process belongs to another one, and none is root's.

Only root can start processes so; for anyone else, or where the packages lie in folders that are closed to others, all
processes belong to whoever starts them. They share one group, to which the pictures belong.
"""

import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Machine, Started

ROOT = Path(__file__).parents[2]
GROUP_ID = 60_600
FIRST_ID = 60_601
"""Of numbers that no distribution gives to anyone. They need no names."""
LEFT_OUT = ("site-packages", "test", "idlelib", "include", "share")
"""Of an interpreter that is copied."""


@dataclass
class SharedMachine(Machine):
    """See the module. A user is known by the name of its folder below `home`."""

    users: list[str] = field(default_factory=list)

    @cached_property
    def apart(self) -> bool:
        """Whether users are different ones."""
        return os.geteuid() == 0 and all(_open_to_all(Path(each)) for each in _packages())

    @cached_property
    def _python(self) -> Path:
        """An interpreter that every user may run: a copy, where this one lies in a folder that is closed to others."""
        usual, base = Path(sys.executable), Path(sys.base_prefix)
        if not self.apart or _open_to_all(usual.resolve()):
            return usual
        shutil.copytree(base, self.home / "python", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        return self.home / "python" / usual.resolve().relative_to(base)

    def folder_of(self, user: str) -> Path:
        """What nobody else may look into."""
        folder = self.home / user
        if not folder.exists():
            folder.mkdir(mode=0o700)
            if self.apart:
                os.chown(folder, self._id_of(user), GROUP_ID)
        return folder

    def share(self, path: Path) -> None:
        """Let all users read a file, or also write into a folder; whatever is made there is the group's again."""
        path.chmod(0o2770 if path.is_dir() else 0o640)
        if self.apart:
            os.chown(path, -1, GROUP_ID)

    def start(self, *arguments: str, url: str, **more: str) -> Started:
        """`aquatint ARGUMENTS` by the user that AQUATINT_HOME is the folder of."""
        folder = Path(more["AQUATINT_HOME"])
        log = self.home / f"{len(self.processes)}-{folder.name}.out"
        known = {name: value for name, value in self.environment.items() if name.startswith(("AQUATINT", "OMP", "PATH"))}
        packages = {"PYTHONPATH": os.pathsep.join(_packages()), "LD_LIBRARY_PATH": str(self._python.parents[1] / "lib")}
        told = known | packages | {"HOME": str(folder), "USER": folder.name, "TMPDIR": str(folder), **more}
        as_user: dict[str, Any] = (
            {"user": self._id_of(folder.name), "group": GROUP_ID, "extra_groups": []} if self.apart else {}
        )
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [str(self._python), "-m", *arguments],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=told,
                umask=0o007,
                **as_user,
            )
        self.processes.append(Started(popen, log, url))
        return self.processes[-1]

    def _id_of(self, user: str) -> int:
        if user not in self.users:
            self.users.append(user)
        return FIRST_ID + self.users.index(user)


def _packages() -> list[str]:
    """Where Aquatint and what it needs are imported from."""
    return [str(ROOT), *site.getsitepackages()]


def _open_to_all(path: Path) -> bool:
    """Whether every user may read a file or folder."""
    return all(each.stat().st_mode & 0o001 for each in path.parents) and bool(path.stat().st_mode & 0o004)
