"""Every stage of the training command, in a world of a few steps: it runs, resumes, and what comes out can be served."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from node.demo import architecture, distill
from node.demo.cli import Stage, app, parts_before_diffusion, run_stage
from node.demo.evaluate import paint, use_few_steps
from node.demo.train_diffusion import Phase, Size, train_diffusion
from node.demo.training_state import LOSS_LOG, Plan

SIZES = (Size(64, 64, 12, 2, 0.5), Size(96, 64, 12, 2, 0.5))
PHASES = (Phase("small", SIZES), Phase("full", SIZES, starts_from="small"))
PLAN = Plan(steps=3, learning_rate=1e-3, warmup_steps=1)
LONGER = Plan(steps=6, learning_rate=1e-3, warmup_steps=2)


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(call: int, module: nn.Module) -> None:
    """Make a module raise at its call number `call`, counted from 1."""
    calls = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed

    module.register_forward_pre_hook(count)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has been trained."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")
    for stage in (Stage.AUTOENCODER, Stage.TEXT, Stage.SMALL, Stage.FULL, Stage.FEW_STEP):
        run_stage(out, stage, PLAN, phases=PHASES)
    return out


def test_the_stages_leave_a_pipeline_that_loads_and_paints_in_any_size(trained: Path):
    pipeline = architecture.load(trained / "checkpoint")

    painted = paint(pipeline, ["a red circle", "青い星"], steps=2, width_px=96, height_px=64)

    assert [picture.size for picture in painted.pictures] == [(96, 64), (96, 64)]


def test_the_few_step_adapter_loads_and_changes_the_picture(trained: Path):
    pipeline = architecture.load(trained / "checkpoint")
    use_few_steps(pipeline, trained / "checkpoint" / distill.ADAPTER)
    how = {"steps": 2, "guidance": 1.0, "width_px": 64, "height_px": 64}

    with_adapter = paint(pipeline, ["a red circle"], **how).pictures[0]
    pipeline.disable_lora()

    assert with_adapter.tobytes() != paint(pipeline, ["a red circle"], **how).pictures[0].tobytes()


def test_the_full_stage_begins_with_what_the_small_one_learned(trained: Path):
    untrained, start = parts_before_diffusion(trained, "cpu"), parts_before_diffusion(trained, "cpu")

    train_diffusion(trained, PHASES[0], start, PLAN)

    assert not torch.equal(start.unet.conv_out.weight, untrained.unet.conv_out.weight)


def test_diffusion_training_stopped_in_the_middle_ends_in_the_same_weights(trained: Path):
    once, twice = Phase("once", SIZES), Phase("twice", SIZES)
    whole = parts_before_diffusion(trained, "cpu")
    train_diffusion(trained, once, whole, LONGER, save_every=2)
    stopped = parts_before_diffusion(trained, "cpu")
    killed_at(6, stopped.unet)
    with pytest.raises(Killed):
        train_diffusion(trained, twice, stopped, LONGER, save_every=2)

    resumed = parts_before_diffusion(trained, "cpu")
    train_diffusion(trained, twice, resumed, LONGER, save_every=2)

    assert (trained / "twice" / LOSS_LOG).read_bytes() == (trained / "once" / LOSS_LOG).read_bytes()
    weights = whole.unet.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.unet.state_dict().items())


def test_distillation_stopped_in_the_middle_ends_in_the_same_adapter(trained: Path, tmp_path: Path):
    def distilled(out: Path, killed_at_call: int | None) -> dict[str, Tensor]:
        parts = parts_before_diffusion(trained, "cpu")
        if killed_at_call:
            killed_at(killed_at_call, parts.unet)
        return distill.distill(out, parts, LONGER, SIZES, save_every=2)

    whole = distilled(tmp_path / "once", None)
    with pytest.raises(Killed):
        distilled(tmp_path / "twice", killed_at_call=14)

    resumed = distilled(tmp_path / "twice", None)

    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_command_explains_itself():
    shown = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})

    assert shown.exit_code == 0
    assert "--device" in shown.output


def test_a_folder_with_something_in_it_is_refused_without_resume(tmp_path: Path):
    (tmp_path / "something").touch()

    refused = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--no-resume"], env={"COLUMNS": "200"})

    assert refused.exit_code == 2
    assert "not empty" in refused.output
