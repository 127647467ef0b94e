"""`aquatint config` says what is in force, and every fault at once."""

import json

import pytest
from typer.testing import CliRunner

from common.commands.config import app
from common.settings import SettingsError


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("AQUATINT__DATABASE_URL", "postgresql://aquatint:very-secret@db/aquatint")
    monkeypatch.setenv("AQUATINT__NODE__TOKEN", "very-secret-node-token")
    return CliRunner()


def test_what_is_in_force_is_shown_with_where_it_comes_from(runner: CliRunner):
    result = runner.invoke(app, ["show", "--json"])

    rows = {row["setting"]: row for row in json.loads(result.stdout)}
    assert rows["AQUATINT__DATABASE_URL"] == {
        "setting": "AQUATINT__DATABASE_URL",
        "value": "postgresql://aquatint:***@db/aquatint",
        "source": "AQUATINT__DATABASE_URL",
    }
    assert (rows["AQUATINT__ROUTER__PORT"]["value"], rows["AQUATINT__ROUTER__PORT"]["source"]) == ("8000", "default")


def test_no_secret_is_shown(runner: CliRunner):
    for arguments in (["show"], ["show", "--json"]):
        assert "very-secret" not in runner.invoke(app, arguments).output


def test_valid_settings_are_counted(runner: CliRunner):
    result = runner.invoke(app, ["check"])

    assert (result.exit_code, result.stdout) == (0, "The settings are valid: 2 set.\n")


def test_faults_of_all_processes_are_named_each_once(runner: CliRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQUATINT__ROUTER__PORT", "none")
    monkeypatch.setenv("AQUATINT__NODE__THREADS", "0")
    monkeypatch.setenv("AQUATINT__LOG_LEVEL", "loud")

    result = runner.invoke(app, ["check"])

    assert isinstance(result.exception, SettingsError)
    named = [line.partition(":")[0] for line in str(result.exception).splitlines()]
    assert sorted(named) == ["AQUATINT__LOG_LEVEL", "AQUATINT__NODE__THREADS", "AQUATINT__ROUTER__PORT"]
