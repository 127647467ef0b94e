"""`aquatint backup`, as an operator or a timer calls it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.catalog import Catalog, NewImage, NewRun, open_asset_store
from tests.conftest import run_apart

ROOT = Path(__file__).parents[2]
Aquatint = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(sqlite_catalog_url: str, tmp_path: Path) -> dict[str, str]:
    """A home whose catalog knows a picture."""
    home = tmp_path / "home"
    home.mkdir()

    async def fill() -> None:
        catalog, store = await Catalog.open(sqlite_catalog_url), open_asset_store(str(home / "assets"))
        sha256 = await store.put(b"a picture")
        run = NewRun(id="run_1", task="generation", model="m", prompt="p", request={}, request_id="r", source="node", n=1)
        await catalog.runs.open(run)
        no = await catalog.runs.begin_attempt("run_1", node="n")
        image = NewImage(index=0, sha256=sha256, size_bytes=9, format="png", width_px=8, height_px=8, seed=1)
        await catalog.runs.finish("run_1", no, images=[image], effective={}, timings={}, answer={})
        await catalog.close()

    run_apart(fill())
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "AQUATINT_HOME": str(home),
        "AQUATINT__DATABASE_URL": sqlite_catalog_url,
    }


@pytest.fixture
def aquatint(environment: dict[str, str]) -> Aquatint:
    def call(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import sys; from common.commands.backup import app; app()", *arguments]
        return subprocess.run(command, env=environment | changed, text=True, capture_output=True)

    return call


def _rows(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_a_backup_is_made_listed_checked_and_restored(aquatint: Aquatint, environment: dict[str, str], tmp_path: Path):
    (made,) = _rows(aquatint("create", "--json"))
    assert _rows(aquatint("list", "--json")) == [made]
    assert (made["assets"], made["size_bytes"], made["missing"]) == (1, 9, 0)
    assert _rows(aquatint("verify", "--json")) == []
    new = {
        "AQUATINT__DATABASE_URL": f"sqlite:///{tmp_path}/new/catalog.db",
        "AQUATINT__ASSETS_URL": str(tmp_path / "new" / "assets"),
    }
    (restored,) = _rows(aquatint("restore", "--json", **new))
    assert restored == {"backup": made["name"], "rows": made["rows"], "assets": 1, "missing": []}
    (again,) = _rows(aquatint("create", "--json", "--to", str(tmp_path / "other"), **new))
    assert {key: again[key] for key in ("rows", "assets", "size_bytes")} == {
        key: made[key] for key in ("rows", "assets", "size_bytes")
    }


def test_a_backup_without_all_pictures_ends_with_an_error(aquatint: Aquatint, environment: dict[str, str]):
    (picture,) = (path for path in (Path(environment["AQUATINT_HOME"]) / "assets").rglob("*") if path.is_file())
    picture.unlink()

    result = aquatint("create")

    assert result.returncode == 1
    assert picture.name in result.stderr
    (listed,) = _rows(aquatint("list", "--json"))
    assert listed["missing"] == 1
    assert aquatint("verify").returncode == 1


def test_old_backups_leave_when_a_new_one_is_made(aquatint: Aquatint, environment: dict[str, str]):
    (old,) = _rows(aquatint("create", "--json"))
    snapshots = Path(environment["AQUATINT_HOME"]) / "backups" / "snapshots"
    (snapshots / old["name"]).rename(snapshots / "20250101T000000Z")

    (new,) = _rows(aquatint("create", "--json", "--keep", "1"))

    assert [path.name for path in snapshots.iterdir()] == [new["name"]]


def test_the_timer_makes_a_backup_at_once_where_the_newest_is_old_and_then_waits(environment: dict[str, str]):
    command = [sys.executable, "-c", "from common.commands.backup import app; app()", "create", "--every-days", "7"]
    timer = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    try:
        assert timer.stdout is not None
        assert timer.stdout.readline().startswith("Backup ")
        with pytest.raises(subprocess.TimeoutExpired):
            timer.wait(0.5)
    finally:
        timer.kill()
        timer.communicate()
    assert len(list((Path(environment["AQUATINT_HOME"]) / "backups" / "snapshots").iterdir())) == 1
