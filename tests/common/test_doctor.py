"""The doctor tells deaths by main memory from those by a GPU's memory, and sees a GPU that is not used."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.commands.doctor import doctor
from common.doctor import Finding
from common.doctor.deaths import of_exit_code, of_log
from common.doctor.machine import clock, gpus, memory, port, use_of_gpus
from common.ports import hold_port

NODE = {"device": {"kind": "cpu"}, "models": [{"id": "m", "resident": True}]}


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("AQUATINT_HOME", str(tmp_path))
    for process in ("ROUTER", "NODE"):
        monkeypatch.setenv(f"AQUATINT__{process}__PORT", str(hold_port()))
    return CliRunner()


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, first on the path, that prints the file beside it."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {told}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return told


def _errors(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.verdict == "error"]


def test_a_process_that_was_killed_died_of_main_memory():
    killed = subprocess.run([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"], check=False)
    by_shell = subprocess.run(["sh", "-c", "(kill -9 $$)"], check=False)

    for code in (killed.returncode, 137, by_shell.returncode):
        (finding,) = of_exit_code(code)
        assert finding.verdict == "error"
        assert "main memory" in finding.found
        assert "not the GPU's" in (finding.advice or "")


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "ok"), (143, "ok"), (-15, "ok"), (1, "error"), (139, "error"), (-6, "error")]
)
def test_other_exit_codes_are_not_about_memory(code: int, verdict: str):
    (finding,) = of_exit_code(code)

    assert finding.verdict == verdict
    assert "memory" not in finding.found


@pytest.mark.parametrize(
    ("line", "check"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "GPU memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "GPU memory"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "GPU memory"),
        ("Killed", "main memory"),
        ('{"event": "worker_lost", "why": "The worker process was killed from outside (exit -9)"}', "main memory"),
        ("[12.3] Out of memory: Killed process 4711 (python3) total-vm:61440000kB", "main memory"),
        ("AssertionError: Torch not compiled with CUDA enabled", "GPU unused"),
        ("ValueError: AutoPipeline can't find a pipeline linked to ZImagePipeline for None", "pipeline class"),
        ('{"event": "loaded", "device": "cuda", "dtype": "torch.float32"}', "dtype"),
        ("pipe.enable_sequential_cpu_offload()", "offload"),
    ],
)
def test_the_cause_of_death_is_read_out_of_a_log(line: str, check: str):
    findings = list(of_log(f"starting\nloading the model\n{line}\n"))

    assert _errors(findings) == [f"log: {check}"]
    assert findings[0].advice
    assert line[:40] in findings[0].found


def test_a_log_without_a_known_cause_says_so():
    (finding,) = of_log("node_ready\nrun_succeeded, 3 pictures, process was not killed\n")

    assert (finding.verdict, finding.check) == ("ok", "log")


def test_processes_killed_in_this_container_are_counted(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\n")
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")

    available, killed = memory(tmp_path, tmp_path)

    assert (available.verdict, available.found) == ("warning", "1.0 GB available")
    assert (killed.verdict, "killed 2" in killed.found) == ("error", True)


def test_a_machine_without_cgroups_has_its_memory_looked_at_all_the_same(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemAvailable: 8000000 kB\n")

    assert [finding.verdict for finding in memory(tmp_path, tmp_path / "none")] == ["ok"]


def test_clocks_that_differ_are_named():
    now_s = 1_790_000_000.0

    (finding,) = clock(now_s, {"the router": now_s - 1, "the database": now_s + 90})

    assert (finding.verdict, "the database is +90 s" in finding.found) == ("warning", True)
    assert next(clock(now_s, {"the router": now_s + 1})).verdict == "ok"
    assert next(clock(0.0)).verdict == "error"


def test_a_port_taken_by_something_else_is_an_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        number = other.getsockname()[1]
        assert port("router", "0.0.0.0", number)[0].found == "free for a router"
        other.listen(1)
        finding, _ = port("node", "127.0.0.1", number)

    assert (finding.verdict, finding.advice) == ("error", "Set AQUATINT__NODE__PORT.")


def test_a_gpu_beside_a_node_on_the_cpu_is_unused(nvidia_smi: Path):
    nvidia_smi.write_text("NVIDIA H100 80GB HBM3, 570.86.15, 4, 81559\n")

    findings = list(use_of_gpus(gpus(), NODE))

    assert findings[0].found == "NVIDIA H100 80GB HBM3, driver 570.86.15, 4 of 81559 MiB used"
    assert _errors(findings) == ["GPU unused"]


@pytest.mark.parametrize(("used_mib", "errors"), [(4, ["GPU unused"]), (9000, [])])
def test_a_loaded_model_shows_in_the_gpus_memory(nvidia_smi: Path, used_mib: int, errors: list[str]):
    nvidia_smi.write_text(f"NVIDIA A10, 570.1, {used_mib}, 23028\n")

    assert _errors(list(use_of_gpus(gpus(), NODE | {"device": {"kind": "cuda"}}))) == errors


def test_a_tool_that_fails_is_no_gpu(nvidia_smi: Path):
    nvidia_smi.write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")

    assert gpus() == []


def test_the_command_says_all_of_it_as_json_and_by_its_exit_code(runner: CliRunner, app: typer.Typer, tmp_path: Path):
    log = tmp_path / "node.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory.\n")

    well = runner.invoke(app, ["--json"])
    ill = runner.invoke(app, ["--json", "--exit-code", "137", "--log", str(log)])

    assert well.exit_code == 0, well.output
    checks = {finding["check"] for finding in json.loads(well.stdout)}
    assert {"settings", "disk", "memory", "catalog", "asset store", "clock", "engine diffusers"} <= checks
    assert ill.exit_code == 1
    errors = [finding["check"] for finding in json.loads(ill.stdout) if finding["verdict"] == "error"]
    assert errors == ["exit code", "log: GPU memory"]


def test_settings_that_are_not_valid_are_findings_all_of_them(
    runner: CliRunner, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AQUATINT__LOG_LEVEL", "loud")
    monkeypatch.setenv("AQUATINT__ROUTER__PROT", "1")

    result = runner.invoke(app, ["--json"])

    found = [finding["found"].partition(":")[0] for finding in json.loads(result.stdout) if finding["verdict"] == "error"]
    assert (result.exit_code, sorted(found)) == (1, ["AQUATINT__LOG_LEVEL", "AQUATINT__ROUTER__PROT"])
