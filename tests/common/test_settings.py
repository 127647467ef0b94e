"""One wrong variable stops the start, by name."""

from pathlib import Path

import pytest

from common.settings import CommonSettings, SettingsError
from node.settings import NodeSettings
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


def test_a_service_called_router_does_no_harm_either():
    beside = {
        "ROUTER_PORT": "tcp://10.0.0.1:8000",
        "NODE_PORT_8001_TCP": "tcp://10.0.0.2:8001",
        "AQUATINT_PORT": "tcp://10.0.0.3:80",
    }

    assert RouterSettings.load(beside).router.port == 8000


def test_a_file_is_read_and_the_environment_wins_over_it(tmp_path: Path):
    file = tmp_path / "aquatint.toml"
    file.write_text('public_url = "https://a.example"\nlog_level = "debug"\n[router]\nport = 9001\n[node]\nthreads = 4\n')
    environ = {"AQUATINT_CONFIG": str(file), "AQUATINT__LOG_LEVEL": "error"}

    settings, found = RouterSettings.load_with_sources(environ)

    assert (settings.public_url, settings.log_level, settings.router.port) == ("https://a.example", "error", 9001)
    assert found.sources == {
        ("public_url",): f"{file}: public_url",
        ("log_level",): "AQUATINT__LOG_LEVEL",
        ("router", "port"): f"{file}: router.port",
    }
    assert NodeSettings.load(environ).node.threads == 4


def test_faults_of_the_file_and_of_the_environment_are_named_together(tmp_path: Path):
    file = tmp_path / "aquatint.toml"
    file.write_text('pubic_url = "x"\n[router]\nport = "many"\nprobe = 1\n')
    environ = {"AQUATINT_CONFIG": str(file), "AQUATINT__IMAGE_URL_ORIGINS": "[not json", "AQUATINT__NODE__PORT__X": "1"}

    with pytest.raises(SettingsError) as caught:
        RouterSettings.load(environ)

    faults = str(caught.value).splitlines()
    assert [fault.rpartition(": ")[0] for fault in faults] == [
        f"{file}: pubic_url",
        f"{file}: router.probe",
        "AQUATINT__IMAGE_URL_ORIGINS",
        f"{file}: router.port",
    ]


@pytest.mark.parametrize("content", ["= 3", None])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, content: str | None):
    file = tmp_path / "aquatint.toml"
    if content is not None:
        file.write_text(content)

    with pytest.raises(SettingsError, match=r"AQUATINT_CONFIG: .*aquatint\.toml"):
        RouterSettings.load({"AQUATINT_CONFIG": str(file)})


def test_any_setting_may_come_as_a_file_as_secrets_do(tmp_path: Path):
    secret = tmp_path / "password"
    secret.write_text("p@ss/word\n")
    environ = {
        "AQUATINT__DATABASE_URL": "postgresql+asyncpg://aquatint@db/aquatint",
        "AQUATINT__DATABASE_PASSWORD_FILE": str(secret),
    }

    settings = RouterSettings.load(environ)

    assert settings.catalog_url == "postgresql+asyncpg://aquatint:p%40ss%2Fword@db/aquatint"
    assert "p@ss" not in repr(settings)


@pytest.mark.parametrize("more", [{}, {"AQUATINT__NODE__TOKEN": "a token of its own"}], ids=["missing", "given twice"])
def test_a_secret_file_that_is_missing_or_one_too_many_is_a_fault(tmp_path: Path, more: dict[str, str]):
    with pytest.raises(SettingsError, match=r"^AQUATINT__NODE__TOKEN_FILE: "):
        NodeSettings.load({"AQUATINT__NODE__TOKEN_FILE": str(tmp_path / "token")} | more)


def test_an_empty_variable_says_nothing():
    assert RouterSettings.load({"AQUATINT__ROUTER__PORT": "", "AQUATINT__ASSETS_URL": ""}) == RouterSettings.load({})


def test_a_database_that_cannot_be_one_is_named_at_the_start():
    with pytest.raises(SettingsError, match=r"AQUATINT__DATABASE_URL: .*not 'mysql'"):
        RouterSettings.load({"AQUATINT__DATABASE_URL": "mysql://db/aquatint"})


@pytest.mark.parametrize(("tree", "given"), [(RouterSettings, {"port": 99999}), (NodeSettings, {"port": 99999})])
def test_a_wrong_option_of_a_command_line_is_named_as_one(tree: type[CommonSettings], given: dict[str, int]):
    with pytest.raises(SettingsError, match=r"^--port: Input should be less than or equal to 65535$"):
        tree.load({}).with_own(**given)
