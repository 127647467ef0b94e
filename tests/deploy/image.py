"""Builds and runs an image without a container engine: `python -m tests.deploy.image Dockerfile.router`.

Every stage is an overlay over this machine's root in which the Dockerfile's steps are carried out word for word; then the
last stage's ENTRYPOINT runs as its USER, without rights, in a network of its own, on a root that is read-only, until its
HEALTHCHECK says that it is well, and ends on its STOPSIGNAL. It shows that the steps work, that what is installed is all
that is needed, and that nothing is written where it may not. What the base image lacks and this machine has, it cannot
show. Needs root and overlayfs; nothing is left behind, for all mounts go with the process.
"""

import argparse
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.dockerfile import Stage, Step, expanded, needed, stages

ROOT = Path(__file__).parent.parent.parent
NEW_MOUNTS, NEW_NETWORK = 0x00020000, 0x40000000
SET_INTERFACE_FLAGS, UP_AND_RUNNING = 0x8914, 0x1 | 0x40
HEALTHY_WITHIN_S, STOPPED_WITHIN_S = 180.0, 60.0
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    # Of a Python built as a shared library; the base image has told its loader.
    "LD_LIBRARY_PATH": "/usr/local/lib",
}


def overlays() -> bool:
    """Whether a process here may have mounts of its own, and overlays among them: some sandboxes let not even root."""
    with tempfile.TemporaryDirectory() as folder:
        steps = "mkdir lower upper work root && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work x root"
        command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs x . && cd $PWD && {steps}"]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


@dataclass(slots=True)
class Image:
    """A stage that was built, and what its instructions left for the run."""

    root: Path
    upper: Path
    lower: str
    environment: dict[str, str]
    folder: str = "/"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def inside(self, words: list[str], *, as_user: bool) -> list[str]:
        """The command line that runs `words` in the image. as_user: as its USER and without any right."""
        user, _, group = self.user.partition(":")
        less = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        chroot = ["chroot", str(self.root), "/usr/bin/env", "-i", "-C", self.folder, *variables]
        return [*chroot, *(less if as_user else []), *words]


class Builder:
    """Builds a file's stages below one folder, which must be a file system of its own."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self._folder = folder
        self._arguments = arguments
        self._built: dict[str, Image] = {}

    def build(self, file: Path) -> Image:
        """The last stage. Raises: CalledProcessError: a step failed."""
        for stage in needed(stages(file, self._arguments)):
            self._built[stage.name] = image = self._begin(stage)
            variables = dict[str, str]()
            for step in stage.steps:
                self._carry_out(step, image, variables)
        return image

    def _begin(self, stage: Stage) -> Image:
        base = self._built.get(stage.base)
        folder = self._folder / stage.name
        root, upper, work = (folder / name for name in ("root", "upper", "work"))
        for each in (root, upper, work):
            each.mkdir(parents=True)
        lower = f"{base.upper}:{base.lower}" if base else "/"
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", str(root))
        if base is None:
            # What an image called python has of its own: this Python, at the place where that image keeps its.
            version = f"python:{sys.version_info.major}.{sys.version_info.minor}."
            assert stage.base.startswith(version), f"{stage.base} is not the Python that runs this"
        _mount("--bind", sys.base_prefix, str(root / "usr/local"))
        _mount("-o", "remount,ro,bind", str(root / "usr/local"))
        _mount("--rbind", "/dev", str(root / "dev"))
        _mount("-t", "proc", "proc", str(root / "proc"))
        _mount("-t", "tmpfs", "tmpfs", str(root / "tmp"))
        return Image(root, upper, lower, dict(base.environment) if base else dict(BASE_ENVIRONMENT))

    def _carry_out(self, step: Step, image: Image, variables: dict[str, str]) -> None:
        match step.name:
            case "ARG":
                name, _, default = step.text.partition("=")
                variables[name] = self._arguments.get(name, default)
            case "ENV":
                for word in step.words():
                    name, _, value = word.partition("=")
                    image.environment[name] = expanded(value, image.environment)
            case "WORKDIR":
                image.folder = step.text
                (image.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(step, image)
            case "RUN":
                self._run(step, image, variables)
            case "SHELL":
                image.shell = step.words()
            case "USER":
                image.user = step.text
            case "ENTRYPOINT":
                image.entrypoint = step.words()
            case "CMD":
                image.command = step.words()
            case "VOLUME":
                image.volumes = step.words()
            case "HEALTHCHECK":
                image.health = Step("CMD", step.text.removeprefix("CMD ")).words()
            case "STOPSIGNAL":
                assert step.text == "SIGTERM"
            case "LABEL" | "EXPOSE":
                pass
            case _:
                raise AssertionError(f"what does {step.name} do?")

    def _copy(self, step: Step, image: Image) -> None:
        *sources, target = step.words()
        source_root = next((self._built[value].root for flag, value in step.flags if flag == "from"), ROOT)
        to = image.root / (image.folder.lstrip("/") if not target.startswith("/") else "") / target.lstrip("/")
        for source in sources:
            found = source_root / source.lstrip("/")
            place = to / found.name if target.endswith("/") and not found.is_dir() else to
            place.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if source_root == ROOT else None
                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(found, place)

    def _run(self, step: Step, image: Image, variables: dict[str, str]) -> None:
        # A cache that outlives builds is this machine's own at the same place.
        caches = [value.partition("target=")[2] for flag, value in step.flags if flag == "mount" and "type=cache" in value]
        for cache in caches:
            Path(cache).mkdir(parents=True, exist_ok=True)
            (image.root / cache.lstrip("/")).mkdir(parents=True, exist_ok=True)
            _mount("--bind", cache, str(image.root / cache.lstrip("/")))
        # How this machine reaches package registries; a builder would be told by its own configuration.
        ways = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")}
        image.environment, kept = {"HOME": "/root"} | ways | image.environment | variables, image.environment
        print(f"RUN {step.text}", flush=True)
        subprocess.run(image.inside([*image.shell, step.text], as_user=False), check=True, stdin=subprocess.DEVNULL)
        image.environment = kept
        for cache in caches:
            subprocess.run(["umount", str(image.root / cache.lstrip("/"))], check=True)


def try_out(image: Image, commands: list[str]) -> None:
    """Start it as an engine would, wait until it is well, run `commands` in it, stop it.

    Raises: AssertionError: it does not get well, or does not end in good order. CalledProcessError: a command failed.
    """
    user, _, group = image.user.partition(":")
    assert user != "0", "it runs as root"
    for volume in image.volumes:
        mode = f"uid={user},gid={group},mode=0700"
        _mount("-t", "tmpfs", "tmpfs", "-o", mode, str(image.root / volume.lstrip("/")))
    _mount("-o", "remount,ro", str(image.root))
    _unshare(NEW_NETWORK)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_INTERFACE_FLAGS, struct.pack("16sh14x", b"lo", UP_AND_RUNNING))
    process = subprocess.Popen(image.inside([*image.entrypoint, *image.command], as_user=True), stdin=subprocess.DEVNULL)
    try:
        began_s = time.monotonic()
        while subprocess.run(image.inside(image.health, as_user=True), stderr=subprocess.DEVNULL, check=False).returncode:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < began_s + HEALTHY_WITHIN_S, "it did not get well in time"
            time.sleep(0.2)
        print(f"HEALTHY after {time.monotonic() - began_s:.1f} s as {_owner(process.pid)} on a read-only root", flush=True)
        for command in commands:
            subprocess.run(image.inside(["/bin/sh", "-euc", command], as_user=True), check=True, stdin=subprocess.DEVNULL)
        process.send_signal(signal.SIGTERM)
        print(f"STOPPED with {process.wait(STOPPED_WITHIN_S)}", flush=True)
        assert process.returncode == 0
    finally:
        process.kill()


def _owner(pid: int) -> str:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    return f"{status['Uid'].split()[0]}:{status['Gid'].split()[0]}"


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _unshare(what: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(what):
        raise OSError(ctypes.get_errno(), "unshare")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Build and run an image without a container engine.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the run")
    parser.add_argument("--exec", action="append", default=[], metavar="COMMAND", help="run in the image while it is well")
    given = parser.parse_args()
    _unshare(NEW_MOUNTS)
    _mount("--make-rprivate", "/")
    with tempfile.TemporaryDirectory() as folder:
        _mount("-t", "tmpfs", "tmpfs", folder)
        try:
            image = Builder(Path(folder), dict(each.split("=", 1) for each in given.build_arg)).build(given.file)
            image.environment |= dict(each.split("=", 1) for each in given.env)
            try_out(image, given.exec)
        finally:
            subprocess.run(["umount", "--recursive", "--lazy", folder], check=False)


if __name__ == "__main__":
    main()
