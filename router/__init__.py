"""The public face: OpenAI's Images routes, dispatch to nodes, the admin API. Installs and starts without torch.

    app.py           makes every part, in order; cli.py, settings.py, services.py
    front.py         the app that is served: a short way for requests for pictures, FastAPI for the rest
    api/             images, models, assets, runs, admin, health: one file a noun, thin
    auth.py          keys and scopes
    model_names.py   names clients use -> models nodes have; together.py: one model as several nodes tell of it
    dispatch.py      carries one run: record, queue, pick, try, fail over; journey.py: what it has come through so far
    attempts.py      one try at one node: send, answer; ending.py: the end of a run without one
    relay.py         what is sent on and passed back; answers.py: finished answers out of the catalog
    body.py          what is done at the end of an answer, however it ends
    frames.py        pure: a stream's events, so that it can be gone on with when its node is lost
    passing.py       an answer's bytes on their way to the client; freed_memory.py: their memory, kept for the next
    accepting.py     from a request to what is dispatched; carried.py: what is being dispatched
    async_runs.py    runs that nobody waits for on a connection; webhooks.py: calls when they have ended
    result_cache.py  the same request again, answered with the same pictures
    quotas.py        limits of API keys, kept by leases of what is left
    headers.py       what clients are told of headers
    wishes.py        until when and how urgently a request is wanted
    estimate.py      what a request would cost and when it would be done
    idempotency.py   requests that come again under one Idempotency-Key; digest.py: what they are known by
    queue.py         where runs wait for a node
    line.py          pure: their order, fair between keys and short work first; ticket.py: one of them
    prospects.py     whose wait ends without a node; foretelling.py: what is predicted of all that wait, made anew
    arrivals.py      those of one key enter it in the order of their coming
    turns.py         many requests that come at once begin a few at a time; garbage.py: no long pauses while they wait
    forecast.py      pure: when those that wait will be done
    placement.py     pure: filter, predict the finish on each node, pick
    decisions.py     why each run went where it went, and what came of the prediction
    candidates.py    pure: what a node said and was sent -> the node as placement sees it
    work.py          how much work a request is; costs.py: what work costs at each node, learned
    likely.py        what it is likely to cost where nobody has measured it yet
    fleet.py         all of them, indexed; binds those that wait to nodes
    simulator/       the same placement and order on fleets of made-up nodes: `aquatint bench placement`
    circuit.py       pure: whether a model that fails on a node is tried there; flaps.py: nodes that come and go
    retry_budget.py  pure: how many tries beyond the first are affordable
    registry.py      the nodes and what we think of them; probe.py looks at them; node_client.py speaks to them
    wire/            HTTP/1.1 to nodes for runs: bodies pass as they come
    bench/           `aquatint bench router`
    metrics.py

Decisions:

- Late binding: a run waits here, not at a node, until a node has a place for it. A node holds what it runs and one more,
  so it never idles, and a wrong prediction costs one run's wait at most. Costs: the router holds request bodies meanwhile.
- Placement is a pure function of what nodes last said and of what was sent since. It weighs what a load throws out by how
  many copies the demand for it needs, and a run whose best node is full waits for it, claiming its turn there: simulated,
  a fleet with three times the models that fit spends 3-4 % of its work on loading instead of 200 %.
- The loop is never held up for long, however many wait: whatever is done for all of them is done once for those that are
  alike, or a few milliseconds at a time, and what many wait for is found without asking all. So `/health` needs no thread
  of its own (`python -m tests.faults.waiting`).
- Order and binding are the code the simulator drives, so a change of policy is judged by `aquatint bench placement` first.
- Keys share the devices by the seconds their runs take, not by requests; within a round of ten seconds short work goes first.
  Priorities share them as 16 to 4 to 1, the higher first: urgent work passes at once, and none starves.
- What is predicted of a run is the line played forward by placement itself: it is what clients are told, what deadlines and
  the bound of the wait are held against, and it is measured (`aquatint_prediction_ratio`).
- The router fixes the seed before the first try, so a run that fails over makes the same picture on another node.
- Bodies of answers are never parsed: bytes in, bytes out, a stream's previews one by one. Only refusals (small) are read.
  Runs go over a client of our own, as httpx costs several times what the bytes cost; everything small goes over httpx.
- One request for a picture: front.py > api/images.py > accepting.py > dispatch.py > queue.py, attempts.py >
  node_client.py > wire/, and its answer's bytes from wire/ by attempts.py to passing.py. FastAPI declares the route and is not
  on the way.
- A request costs what its calls cost, each a microsecond in caches that are cold after every wait; so the usual way is short:
  one that finds a node with room and nobody waiting enters no line, its row is written with those that come within some
  milliseconds (`dispatch.py` says where), an answer that is here whole is sent without a generator, and accounts are done when
  it is sent (`aquatint bench router`). What each request makes are named tuples: frozen dataclasses take three times as long.
- A node is given up on two failed looks or a broken connection, and then asked through the catalog whether it had
  finished; only the current attempt may store a result, so a node that comes back late does no harm.
- A model that failed three times in a row on a node is held off there for 5 s, doubling to 60 s, and then tried by one
  run. Tries beyond the first are bounded to a fifth of the runs and ten a second. Both are each router's own to judge.
- A streamed request may be answered with an ordinary error for ten seconds; then its stream begins, with keep-alives.
- 502 with `x-should-retry: true` after fewer tries than allowed, `false` after all: an SDK would else triple the damage.
  What an engine says that it would repeat is a 500 with `false`.
"""
