"""Our own denoising loop: runs come and go between two steps, each with its own solver, steps, guidance and noise.

    families.py     what one step of a family's pipeline is, taken apart from the pipeline's own loop
    runs.py         a run at work, and what is told of it
    loop.py         who is in the next step, and what becomes of a step that fails
    decoding.py     finished latents as pictures, beside the next step where the device has room for both

A pipeline's own call cannot be joined: its batch is made from the first step to the last picture. So the loops of those
families where it pays are written here once more, over the pipeline's own parts. Alone, a picture is the pipeline's to the
bit (in company it differs by rounding), and a test for each family and sampler says so whenever diffusers changes.
"""
