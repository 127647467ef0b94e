"""Long jobs: retention, sweeps, backups, pulls. Begun once, carried to their end by whichever router lives.

    runner.py      one a router: takes up jobs that nobody holds, prolongs leases; schedules.py: what is due
    execution.py   DBOS, which runs them: the only file that imports it
    work.py        what the code of a kind sees: steps, progress, and a job's end
    kinds.py       the kinds there are, and what each may be asked for
    removing.py backing_up.py on_nodes.py  what they do

Decisions:

- Our table `jobs` is what people see and what routers agree on; DBOS keeps what each step of a job gave, in the same
  PostgreSQL, or in a file beside an SQLite catalog. It is a checkpoint, not a record: lost, a job begins anew.
- A job is a sequence of steps, each of which may be done twice. What cannot be counted twice is listed by one step and
  done by the next, which goes by that list: so the counts of a job that was killed are those of one that was not.
- Who works on a job holds a lease in the catalog. DBOS by itself takes up what a process of the same name left, and never
  what another did; our routers have names that are new at each start, and the lease alone says that one is dead. A router
  that only seemed so is fenced twice: by DBOS, whose every checkpoint checks its owner, and by the number of its execution.
- Cancelling is asked for, and answered by the step that finds it: a job ends between two steps, with its summary.
- DBOS has an event loop of its own, in a thread: what a job computes does not keep requests waiting, and DBOS, which
  replaces the thread pool of the loop that it is called from, leaves ours alone. It is imported and started when there is
  a first job, for it asks its database every second from then on.
- DBOS is one for a process. Of two routers in one, which only tests have, the first that has a job carries all.
"""
