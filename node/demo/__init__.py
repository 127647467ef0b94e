"""The demonstration checkpoint: a small Stable-Diffusion-shaped pipeline that this project draws for, trains and ships.

Why it exists: `aquatint up` must paint on a laptop without a GPU or a download, and a test about pictures must be able
to ask "did the picture do what was asked?". Both need a model whose whole world is known to a program.

    world.py                what can be in a picture, and drawing it            (Pillow, numpy)
    captions.py             the same in words, English and Japanese             (standard library)
    checker.py              the way back: any picture -> what is seen in it     (Pillow, numpy)
    tokenizer.py            a CLIP vocabulary learned on the captions
    architecture.py         the parts, from the real diffusers and transformers classes; saving them as a pipeline
    attention.py            attention as it is cheapest to train on a CPU
    memory.py               keeping freed memory: half of the time of small nets on a CPU
    training_state.py       atomic checkpoints, resume to the same bits, loss log
    train_autoencoder.py    pictures -> latents -> pictures
    train_text.py           captions -> what they mean
    latents.py              drawn scenes as latents, made once and kept
    train_diffusion.py      meaning and noise -> latents
    distill.py              the four-step adapter (LCM-LoRA)
    evaluate.py             what the checker thinks of sampled pictures
    cli.py                  `aquatint train demo`
    checkpoint/             the shipped weights, a diffusers folder; MODEL_CARD.md says what they can do

Nothing here needs torch before something is trained or sampled: world, captions and checker are plain Python.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""A folder for `StableDiffusionPipeline.from_pretrained(..., use_safetensors=True, local_files_only=True)`."""
FEW_STEP_ADAPTER = CHECKPOINT / "few_step"
"""A folder for `pipeline.load_lora_weights`: with LCMScheduler, 4 steps and guidance 1.0."""
