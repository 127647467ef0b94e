"""Second stage: the text encoder, taught to say what a caption means.

Stable Diffusion's text encoder comes trained on picture-caption pairs and is then left alone; ours learns in a minute
from captions and the scenes they were made from. Without it the UNet learns grounds quickly and things hardly at all:
for thousands of steps, text that means nothing yet gives it no reason to look there.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from node.demo import architecture
from node.demo.captions import caption, some_of
from node.demo.training_state import Dice, Plan, train
from node.demo.world import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Scene, training_scene

BATCH = 64
NOTHING_SAID = 0.03
"""How often the caption is empty."""

SLOTS: tuple[tuple[str, ...], ...] = (
    tuple(COLOURS), tuple(RELATIONS),
    SHAPES, tuple(COLOURS), tuple(SIZES), tuple(PLACES),
    SHAPES, tuple(COLOURS), tuple(SIZES), tuple(PLACES),
)  # fmt: skip
"""What a caption can say: ground, relation, and of each of two things shape, colour, size and place."""


def meaning(scene: Scene) -> list[int]:
    """For each slot the number of the word, or 0 for unsaid."""
    said: list[str | None] = [scene.ground, scene.relation]
    for at in range(2):
        thing = scene.things[at] if at < len(scene.things) else None
        said += [thing.shape, thing.colour, thing.size, thing.place] if thing else [None] * 4
    return [words.index(word) + 1 if word else 0 for words, word in zip(SLOTS, said, strict=True)]


def token_ids(tokenizer: Any, captions: list[str], device: torch.device | str = "cpu") -> Tensor:
    """(B, 77) ids, cut and padded as StableDiffusionPipeline does."""
    batch = tokenizer(captions, padding="max_length", max_length=architecture.TEXT_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids.to(device)
    return ids


def said_in_training(rng: random.Random) -> tuple[str, Scene]:
    """A caption and what it says; now and then nothing."""
    if rng.random() < NOTHING_SAID:
        return "", Scene(())
    scene = some_of(training_scene(rng), rng)
    return caption(scene, rng), scene


class Reading:
    """Reads the slots from the text encoder's states; thrown away after training."""

    def __init__(self, text_encoder: Any, device: str) -> None:
        self.text_encoder = text_encoder
        self.slots = nn.Linear(architecture.TEXT_WIDTH, sum(len(words) + 1 for words in SLOTS)).to(device)

    def logits(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """One (B, words + 1) for each slot, read at one token of each caption: (B,)."""
        states = self.text_encoder(ids)[0]
        at = states[torch.arange(len(ids), device=ids.device), positions]
        return torch.split(self.slots(at.float()), [len(words) + 1 for words in SLOTS], dim=-1)


def train_text(out: Path, tokenizer: Any, plan: Plan, *, device: str = "cpu", save_every: int = 250) -> Any:
    """Train and return the text encoder; its progress is kept in `out`/text.

    The meaning is asked for at a random token from the end mark on. There are always fifty or more of those, each sees
    the whole caption, and the UNet's attention reads them all.
    """
    torch.manual_seed(plan.seed)
    reading = Reading(architecture.text_encoder(len(tokenizer)).to(device), device)
    end = tokenizer.eos_token_id

    def loss_of(chance: Dice) -> Tensor:
        captions, scenes = zip(*(said_in_training(chance.scenes) for _ in range(BATCH)), strict=True)
        ids = token_ids(tokenizer, list(captions), device)
        first_end = (ids == end).int().argmax(dim=-1)
        share = torch.rand(BATCH, generator=chance.noise).to(device)
        positions = first_end + (share * (ids.shape[-1] - first_end)).long()
        wanted = torch.tensor([meaning(scene) for scene in scenes], device=device)
        losses = [F.cross_entropy(one, wanted[:, at]) for at, one in enumerate(reading.logits(ids, positions))]
        return torch.stack(losses).sum()

    modules = {"text_encoder": reading.text_encoder, "slots": reading.slots}
    train(modules, loss_of, plan, out / "text", save_every=save_every)
    return reading.text_encoder.eval().requires_grad_(False)
