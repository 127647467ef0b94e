"""One device behind OpenAI's Images routes: checkpoints, engines, and the worker process that owns the device."""
