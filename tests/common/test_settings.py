"""One wrong variable stops the start, by name."""

from pathlib import Path

import pytest

from common.settings import SettingsError
from router.settings import RouterSettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQUATINT__ROUTER__PORT", "9000")
    monkeypatch.setenv("AQUATINT_HOME", "/data")

    settings = RouterSettings.load()

    assert settings.router.port == 9000
    assert settings.home == Path("/data")
    assert settings.catalog_url == "sqlite+aiosqlite:////data/catalog.db"


def test_all_faults_are_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQUATINT__ROUTER__PROT", "9000")
    monkeypatch.setenv("AQUATINT__ROUTER__MAX_QUEUED", "many")
    monkeypatch.setenv("AQUATINT__LOG_LEVEL", "loud")
    monkeypatch.setenv("AQUATINT__DATABSE_URL", "sqlite://")

    with pytest.raises(SettingsError) as caught:
        RouterSettings.load()

    for name in ("ROUTER__PROT", "ROUTER__MAX_QUEUED", "LOG_LEVEL", "DATABSE_URL"):
        assert f"AQUATINT__{name}" in str(caught.value)


def test_variables_that_kubernetes_sets_beside_a_service_do_no_harm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQUATINT_ROUTER_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("AQUATINT_ROUTER_SERVICE_HOST", "10.0.0.1")

    assert RouterSettings.load().router.port == 8000


def test_the_sections_of_other_processes_are_left_to_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQUATINT__NODE__PORT", "1")

    assert RouterSettings.load().router.port == 8000
