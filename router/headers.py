"""The headers of image requests and of their answers that clients may care for, in words."""

from common.node_api import REQUEST_ID_HEADER, RUN_ID_HEADER
from router import decisions, forecast, idempotency, result_cache, splitting, wishes

OF_REQUESTS = {
    wishes.DEADLINE_HEADER: "Seconds after which the answer is not wanted any more. What cannot be done by then, as predicted, "
    "is a 504 `deadline_too_soon` at once.",
    wishes.PRIORITY_HEADER: f"{', '.join(f'`{name}`' for name in wishes.NAMES)}: who waits goes by it. Not above the key's "
    "(`aquatint keys create --priority`), which is `normal` where none is set.",
    "prefer": "`respond-async`: answer with the run, at once.",
    idempotency.HEADER: "A name for the request: sent again under it, it is not made again.",
    REQUEST_ID_HEADER: "Your own name for the request, in the answer, in logs and in `GET /v1/runs?request_id=`.",
    decisions.DEBUG_HEADER: f"`1`, with an admin's key: the answer says where it was made and why, in "
    f"`{decisions.DECISION_HEADER}`.",
}
OF_ANSWERS = {
    RUN_ID_HEADER: "The run: `GET /v1/runs/{id}`, `aquatint explain`.",
    forecast.POSITION_HEADER: "Its place in the line when it came, from 1; 0 where a node took it at once.",
    forecast.ETA_HEADER: "Seconds to its answer, as predicted then.",
    splitting.PARTS_HEADER: "`2+2`: made in parts, so many pictures by each node.",
    "x-image-seeds": "Of each picture.",
    "x-ignored-params": "Fields that had no effect.",
    "retry-after": "Whole seconds, 1 to 60.",
    "x-should-retry": "`false` where a retry is useless; OpenAI's SDKs heed it.",
    idempotency.REPLAYED_HEADER: "`true`: the first answer under this idempotency key.",
    result_cache.HEADER: "`hit`: the pictures of the same request before.",
}
