"""Training that is stopped goes on as if it had not been."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.demo.training_state import LOSS_LOG, Averaged, Plan, PlanChanged, dice
from tests.node.demo import small_training
from tests.node.demo.small_training import PLAN, train_small


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train_small(folder)


def killed_after(steps: int, folder: Path) -> None:
    """Run the training in a process of its own and kill it, without warning, in its step `steps` + 1."""
    command = [sys.executable, "-u", small_training.__file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        lines = (line for line in training.stdout if line == "step\n")
        for _ in range(steps + 1):
            assert next(lines)
        training.kill()


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_killed_and_resumed_training_gives_the_same_weights_and_losses(
    steps: int, tmp_path: Path, uninterrupted: tuple[Path, dict[str, Tensor]]
):
    whole, weights = uninterrupted
    killed_after(steps, tmp_path)

    resumed = train_small(tmp_path)

    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    assert (tmp_path / LOSS_LOG).read_bytes() == (whole / LOSS_LOG).read_bytes()


def test_a_finished_stage_is_not_trained_again(uninterrupted: tuple[Path, dict[str, Tensor]]):
    folder, weights = uninterrupted

    def no_step() -> None:
        raise AssertionError("trained again")

    again = train_small(folder, after_step=no_step)

    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_another_plan_is_refused_in_the_folder_of_a_half_trained_stage(
    uninterrupted: tuple[Path, dict[str, Tensor]],
):
    folder, _ = uninterrupted

    with pytest.raises(PlanChanged, match="another plan"):
        train_small(folder, replace(PLAN, learning_rate=2e-3))


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path, uninterrupted: tuple[Path, dict[str, Tensor]]):
    _, weights = uninterrupted
    (tmp_path / "state.safetensors.tmp").write_bytes(b"half")

    assert all(torch.equal(weight, weights[name]) for name, weight in train_small(tmp_path).items())


def test_the_learning_rate_rises_then_falls_to_almost_nothing():
    plan = Plan(steps=1000, learning_rate=1.0, warmup_steps=100)
    rates = [plan.learning_rate_at(step) for step in range(1000)]

    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert (max(rates), round(rates[-1], 2)) == (1.0, 0.02)


def test_steps_draw_different_things_and_the_same_step_the_same():
    draws = [(dice(0, step).scenes.random(), torch.randn(1, generator=dice(0, step).noise).item()) for step in (1, 2, 1)]

    assert draws[0] == draws[2]
    assert draws[0][0] != draws[1][0]
    assert draws[0][1] != draws[1][1]


def test_averaged_weights_are_only_lent():
    layer = torch.nn.Linear(2, 2)
    weights = Averaged({"layer": layer})
    untrained = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    trained = layer.weight.detach().clone()

    with weights.in_place():
        assert torch.equal(layer.weight, untrained)

    assert torch.equal(layer.weight, trained)
