"""One device behind OpenAI's Images routes: checkpoints, engines, and the worker process that owns the device.

    cli.py __main__.py app.py settings.py     the command, the parts and their lifetimes
    api.py control.py health.py auth.py       HTTP: OpenAI's routes, /node/v1, /health /ready /metrics, who may
    runs.py                                   the way of one request: choose, queue, load, run, record, answer
    resolve.py profile.py profiles/ traits.py a request and a profile -> a spec; what each family and variant wants
    tuning.py                                 how engines compute: settings without an effect on pictures but rounding
    presets.py likeness.py                    ways to skip a part of the steps, and what they cost in likeness
    prompt_weights.py lora_requests.py        what `(word:1.3)` means in a prompt, and what a request says of LoRAs
    scheduler.py residency.py                 who is next; what is on the device
    memory_ladder.py memory_limits.py         what is done when its memory runs out, and what is remembered of it
    sharing.py batch_table.py                 which runs share a pass, and what passes cost by their size
    offload.py                                which weights stay in main memory until they are needed
    worker/ engines/                          the child process, and the code in it that runs checkpoints
    engines/stepping/                         our own denoising loop, where runs come and go between steps
    engines/families/                         how the pipelines of each model family are called
    recorder.py status.py metrics.py          what the catalog, routers and Prometheus are told
    models.py choice.py model_folders.py checkpoints.py diffusers_folder.py sdcpp_files.py safetensors_header.py
    gguf_header.py pipeline_classes.py engine_names.py
                                              what can be served, and every check before a library opens a file
    loras.py lora_family.py                   the same of LoRAs
    hashes.py pulling.py models_cli.py        sha256 of files; downloads; `aquatint models scan|verify|add|pull|rm`
    chores/                                   pulls and hash scans that routers ask for, each in a process of its own
    bench.py benches/                         what a node costs over the bare pipeline; `aquatint bench gpu`
    demo/                                     what is served when there is no other model

Decisions:

- The device belongs to a child process that is replaced when it dies or hangs. Costs: a picture's bytes go through a
  socket, and a replacement loads its models again.
- A request that names a seed is made alone, picture after picture, unless it says `exact: false`: a seed must give the same
  bytes alone and beside others, and passes of several pictures differ by rounding. Others share a pass with those that wait
  beside them and ask for the same work, where a table of what really ran says that it pays by a tenth. Each picture has
  noise of its own; the answer tells the size of its pass. Costs: who wants such a picture again gets it but for rounding.
- Of SD 1.5, SDXL and Z-Image such runs come and go between the steps of one another, by a denoising loop of ours
  (`stepping/`): who comes late waits for a step, not for a picture. Costs: steps to keep equal to diffusers', to the bit,
  which tests do. The others either gain little, for one picture fills a device, or are asked for less. A late run is let in
  only from the head of the queue, so that no stream of them holds up another model.
- Only runs from text alone share passes, and only at preset `full`: a step cache decides by all pictures of a pass.
- A worker that dies under a pass takes no run with it: each is made again, alone, and only the one at fault dies twice.
- Pictures are drawn at the next size the model can make and cut from the middle to the size asked for, so any size
  within the profile's limits is exact. Costs: up to 15 px at the edges.
- A field that cannot have an effect with the model (guidance of a distilled one) is told in `x-ignored-params`; a value
  beyond a limit is an error that gives the limit. Nothing is clamped.
- Blocks are compiled by a thread beside the runs, which never wait for it and run plain with LoRAs or a step cache within
  them. Off unless set: the bytes of a seed differ by rounding before and after.
- Presets that change pictures are named by whoever wants them, and by every answer; runs with one are made alone and teach
  the node nothing of how long a step takes. Those of UNets are ours (`deep`), for diffusers has none for them.
- Prompts of the CLIP families are read with A1111's syntax, for theirs are written in it: brackets in one are weights, and
  a profile can switch that off. Models of plain language see plain language.
- A model that ends three workers in a row is not tried any more until an operator loads it: each death costs every other
  model of the node a load.
- LoRAs lie beside the weights and are never merged into them: taking one off gives back the very bits. Costs: their own
  products at each step while one is on, a quarter more for rank 16 on every layer of the demonstration model.
- A LoRA is applied whole or refused: a layer that fits nothing means that it was made for something else.
- Checkpoints are found at the start, and checked again by the worker right before each load. A new one needs a restart.
- A folder with code, or with a pickle under another name, is refused as a whole. Pickled weights that are called so stay
  where they are: loads read safetensors only, and most downloads hold both.
- A model that follows instructions edits by them, and makes variations by a sentence of ours; others start from the noised
  picture. Such a model looks at every picture of an edit, at the sizes its own pipeline takes.
- What a family has no pipeline for is refused with `unsupported_task`, not imitated: Qwen-Image-Edit draws nothing of its
  own, Sana changes nothing. Costs: Qwen-Image-Edit's own inpainting, which draws at sizes of its own, is not used; with a
  mask it edits the whole picture, of which the part outside is put back.
- Profiles within a family are told by configs, the licence among them; where those are equal (SD 3.5 Large Turbo) the
  sidecar must say.
- Edits and variations run on the loaded components through other pipeline classes: one set of weights in memory. What is
  outside a mask is put back pixel by pixel afterwards, for an autoencoder changes everything it touches.
- Uploads are decoded in a process of their own, bounded in memory and time; the worker gets plain pixels.
- A single file needs a folder of configs named in its sidecar: tokenizers are data of their makers and do not ship here.
- How a picture was made is written into its file unless `embed_parameters` is off: it is the client's own prompt, and the
  picture of last Tuesday is then enough to make it again. It holds no date or version, so that equal stays equal.
- Two engines: diffusers, and stable-diffusion.cpp for GGUF and for machines without torch. Both live in the one worker,
  imported when a model needs them, and the node chooses among the files of a name (`choice.py`). sd.cpp makes other
  pictures of a seed than diffusers does, so the run says which engine made it.
- sd.cpp cannot be stopped, so cancelling its run ends the worker. That costs a load, two seconds with small models, and
  whatever else was loaded; it is told as no crash, and nobody else's run is lost.
- What ends a process inside sd.cpp is kept out of it: files by their headers, text encoders that are missing, weights of a
  prompt that are no numbers, prompts beyond 4000 bytes (the rest is cut off, and the answer says so). Commands of its own
  programs in a prompt, which name files, are taken out. It does not tell tokens, so `usage` counts none for the text.
- A run for which memory runs out is made once more with the autoencoder in tiles, and the answer says so (`vae_tiled`); then
  with the device to itself; then, on a CUDA device, with weights in main memory until they are needed. What helped is where
  the next picture as large begins. When nothing does it is an error with a size that should fit, and pictures as large are
  refused at once for a day (`memory_ladder.py`): that another program took the memory is found out late, unless an operator
  loads the model.
- A model that was loaded with weights in main memory stays so, for small pictures as well, until it leaves: loading it anew
  for each change of size would cost more.
- A worker killed by SIGKILL from outside is told as `insufficient_memory`: the system's killer is the usual sender.
"""
