"""What router and node must agree on. Imports neither of them, nor torch, nor diffusers.

    errors.py        the tree of errors a client can see
    images_api/      OpenAI's Images wire, both directions
    pictures.py png.py
                     pixels -> PNG, JPEG, WebP, with what is written into a file about its making
    catalog/         runs, assets, models, nodes, keys; the only place that opens a database session
    node_api.py      what router and node say to each other beside OpenAI's routes
    web/             what both HTTP processes do alike
    settings.py settings_sources.py            what an operator sets: a file, the environment, secret files
    logs.py tracing.py metrics.py counting.py  what a process tells of itself
    version.py upload_limits.py
    cli.py           the command `aquatint`; commands/ are those that need neither router nor node code
    doctor/          what `aquatint doctor` looks at
    first_key.py api_client.py processes.py lifeline.py ports.py
                     what the commands are made of

Decisions:

- Settings begin with `AQUATINT__`, so that what Kubernetes injects beside a service of our name is not taken for them.
- PNG is written by a few lines of our own over ISA-L, for less than a tenth of the CPU of Pillow's default. Costs: one more
  dependency.
- Pictures become base64, and come from it, by pybase64: a tenth and a fiftieth of the standard library's time, which held up
  the event loop. Costs: one more.
- Subcommands are entry points: the command line finds router and node without importing them here.
- HTTP clients of our own use httpx; the openai SDK (httpx2) appears in tests and examples only.
"""
