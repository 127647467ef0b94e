"""The catalog: what was asked, tried and made, by whom and where. The only place that opens a database session.

    catalog.py     Catalog: open, and the subjects below
    runs.py        runs, attempts, images, tags (rows.py: rows -> records)
    async_runs.py  runs that nobody waits for on a connection
    idempotency.py the requests that come again
    results.py     pictures that are the result of several runs
    quotas.py      what keys use, and what routers may give away of their limits
    costs.py       what routers have learned of the costs of work at nodes
    decisions.py   why routers sent runs where they sent them
    jobs.py        long jobs (job_records.py)
    retention.py   runs that are older than anybody wants to keep
    nodes.py keys.py models.py shared_secrets.py
    encryption.py  the key node tokens are encrypted with
    assets.py      the bytes of images by sha256 (folder_store.py, s3_store.py)
    sweeper.py     closes what a crash left open, removes bytes nobody refers to
    database.py    engine, transactions, errors; ids.py columns.py tables.py migrate.py revisions.py migrations/
    grouped.py     one commit for many writes; behind.py: the same a moment later; shared_reads.py: one read for many
    own_thread.py  sqlite_inserts.py: the quick way of what is written for every run; futures.py: of both
    records.py     what callers give and get

Decisions:

- Order of writes: run queued > attempt > bytes durable > one transaction with images and the run's success > answer.
  A crash between any two leaves what the sweeper can close. Costs: three small commits a run. On SQLite the first may come
  some milliseconds after the run was sent, shared with others, and whoever of router and node comes first makes it
  (`open_soon`, `take_on`): for its own process a run is there at once, and no client is told of one that is not recorded.
- Attempts are fenced by number under the lock of the run's row: of two nodes that work on one run, only the later may
  store. Repeating the same `finish` is allowed, because the answer to a commit can get lost.
- SQLite and PostgreSQL with one set of models. Every write on SQLite is BEGIN IMMEDIATE in WAL with synchronous=FULL:
  router and nodes write one file, and a commit survives the power. Costs: one writer at a time. One exception: a new run
  whose client waits is flushed with whatever is committed next, its result at the latest (`sqlite_inserts.py`).
- Callers get frozen records, never rows; callers see errors of `common.errors`, never SQLAlchemy's. Whatever makes the
  database unusable is CatalogUnavailable, within about 5 s (10 s when another process holds SQLite's lock).
- Times are of the process that writes. A sweep therefore needs limits well above the clocks' differences.
- Text that PostgreSQL cannot hold (NUL, half surrogates) is replaced, not refused: a run must not fail by its record.
- Bytes without a row are removed only when older than a grace time, and storing bytes again makes them young again;
  a folder decides and removes in one step. S3 cannot, so there the grace time must be longer than any run.
"""

from common.catalog.assets import AssetFile, AssetStore, open_asset_store
from common.catalog.catalog import Catalog
from common.catalog.database import sqlite_url
from common.catalog.encryption import load_or_create_secret_key
from common.catalog.errors import AssetCorrupt, AttemptFenced, SchemaOutdated
from common.catalog.ids import new_id
from common.catalog.job_records import JobEvent, JobRecord, JobState, NewJob
from common.catalog.jobs import JobLeft
from common.catalog.migrate import migrate
from common.catalog.nodes import KEEP
from common.catalog.records import (
    Amounts,
    AsyncRecord,
    AttemptRecord,
    AttemptStatus,
    Claim,
    CostRecord,
    DueWebhook,
    Earlier,
    ImageRecord,
    KeyRecord,
    Lease,
    Limits,
    ModelFile,
    ModelRecord,
    NewAsync,
    NewImage,
    NewRun,
    NodeRecord,
    NodeState,
    RunRecord,
    RunStatus,
    SweepReport,
    UsageRecord,
)

__all__ = [
    "KEEP",
    "Amounts",
    "AssetCorrupt",
    "AssetFile",
    "AssetStore",
    "AsyncRecord",
    "AttemptFenced",
    "AttemptRecord",
    "AttemptStatus",
    "Catalog",
    "Claim",
    "CostRecord",
    "DueWebhook",
    "Earlier",
    "ImageRecord",
    "JobEvent",
    "JobLeft",
    "JobRecord",
    "JobState",
    "KeyRecord",
    "Lease",
    "Limits",
    "ModelFile",
    "ModelRecord",
    "NewAsync",
    "NewImage",
    "NewJob",
    "NewRun",
    "NodeRecord",
    "NodeState",
    "RunRecord",
    "RunStatus",
    "SchemaOutdated",
    "SweepReport",
    "UsageRecord",
    "load_or_create_secret_key",
    "migrate",
    "new_id",
    "open_asset_store",
    "sqlite_url",
]
