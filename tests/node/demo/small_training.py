"""A training small enough for tests, also as a process that can be killed: `python small_training.py FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from node.demo import architecture
from node.demo.train_autoencoder import reconstruction_loss, to_tensor, training_picture
from node.demo.training_state import Dice, Plan, train

PLAN = Plan(steps=14, learning_rate=1e-3, warmup_steps=4, seed=3)


def train_small(folder: Path, plan: Plan = PLAN, after_step: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """Train the real autoencoder for a few steps, saving every fifth. Returns its averaged weights."""
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    vae = architecture.autoencoder()

    def loss_of(chance: Dice) -> Tensor:
        pixels = to_tensor([training_picture(chance.scenes, 32) for _ in range(2)])
        loss = reconstruction_loss(vae, pixels, torch.randn((2, 4, 4, 4), generator=chance.noise))
        after_step()
        return loss

    train({"vae": vae}, loss_of, plan, folder, save_every=5)
    return {name: weight.clone() for name, weight in vae.state_dict().items()}


if __name__ == "__main__":
    train_small(Path(sys.argv[1]), after_step=lambda: print("step", flush=True))
