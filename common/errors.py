"""The errors a client can see, drawn as a tree. Handlers raise them; one place in each app writes them.

AquatintError                      500  server_error
├── InvalidRequest                 400  invalid_request_error
│   ├── UnreadableBody             400  invalid_request_error
│   ├── UserImageError             400  image_generation_user_error
│   ├── UnknownModel               400  image_generation_user_error   (the model a generation names)
│   ├── UnsupportedTask            400  invalid_request_error   (no pipeline of the model does it)
│   ├── LoraRefused                400  invalid_request_error   (unknown here, or made for another family)
│   └── ControlRefused             400  invalid_request_error   (the same of a ControlNet)
├── Unauthorized                   401  invalid_request_error
├── Forbidden                      403  invalid_request_error
├── NotFound                       404  invalid_request_error
├── MethodNotAllowed               405  invalid_request_error
├── RequestTimeout                 408  invalid_request_error   (the client is too slow in sending it)
├── Conflict                       409  invalid_request_error   (never retried by clients: x-should-retry false)
│   ├── KeyInFlight                409  the first request with this idempotency key has no answer yet (Retry-After)
│   └── NodeBusy                   409  a node has no place for what a router sent it; no client sees this
├── Gone                           410  invalid_request_error
├── PayloadTooLarge                413  invalid_request_error
├── KeyReused                      422  invalid_request_error   (an idempotency key that came with another request before)
├── TooManyRequests                429  requests                (Retry-After)
│   ├── RateLimited                429  requests                (a key's requests per minute, or in flight)
│   └── QuotaExceeded              429  insufficient_quota      (a key's day is used up: x-should-retry false)
├── HeadTooLarge                   431  invalid_request_error
├── RunCancelled                   499  server_error
├── EngineFailed                   500  server_error            (would fail again: x-should-retry false)
│   ├── LoraMismatch               422  invalid_request_error   (its tensors do not fit the model)
│   └── ControlMismatch            422  invalid_request_error   (the same of a ControlNet)
├── NodeFailed                     502  server_error
├── Unavailable                    503  server_error            (Retry-After)
│   ├── NoCapacity                 503  no node can take the run now
│   ├── CatalogUnavailable         503  the catalog cannot be reached
│   ├── OutOfDeviceMemory          503  this model or picture does not fit the device (x-should-retry false)
│   └── StorageFull                503  asset bytes cannot be written
└── DeadlineExceeded               504  server_error
    ├── WaitedTooLong              504  it waited for a node until its time was over: nothing was started
    └── DeadlineTooSoon            504  it cannot be met, as predicted: refused at once, nothing was started

The envelope is OpenAI's: {"error": {"message", "type", "param", "code"}}. OpenAI's SDKs retry 408, 409, 429
and every 5xx twice unless `x-should-retry` says otherwise, and ignore a Retry-After above 60 s (Node) or
120 s (Python): hence `retry_after_s` is kept within 1..60 and a useless retry is forbidden explicitly.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

MAX_RETRY_AFTER_S = 60


def bounded_s(retry_after_s: float) -> int:
    """Whole seconds that every client honours."""
    return min(MAX_RETRY_AFTER_S, max(1, round(retry_after_s)))


class AquatintError(Exception):
    """An error with a place on the wire. `message` is a sentence for the person who sent the request."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"
    retryable: bool | None = None
    """What `x-should-retry` says; None leaves the choice to the client's own rules."""
    run_id: str | None = None
    """The run that ended so, where one was recorded."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after_s = None if retry_after_s is None else bounded_s(retry_after_s)

    def envelope(self) -> dict[str, Any]:
        """The JSON body of OpenAI's error answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that tell an SDK whether and when to try again."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.retryable is not None:
            headers["x-should-retry"] = "true" if self.retryable else "false"
        return headers


class InvalidRequest(AquatintError):
    """The request itself is wrong; sending it again gives the same answer."""

    status, type = 400, "invalid_request_error"
    code: str | None = "invalid_value"


class UnreadableBody(InvalidRequest):
    """The body is no JSON object. OpenAI gives this no code."""

    code = None


class UserImageError(InvalidRequest):
    """OpenAI's own class for what is wrong with the picture asked for: sizes, masks, uploads."""

    type = "image_generation_user_error"


class UnknownModel(UserImageError):
    """A generation, edit or variation names a model nobody here has."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist.", param="model", code="invalid_value")


class UnsupportedTask(InvalidRequest):
    """A generation, edit or variation by a model that makes none."""

    code = "unsupported_task"

    def __init__(self, model: str, task: str, can: Iterable[str]) -> None:
        able = ", ".join(sorted(can))
        super().__init__(f"The model {model!r} makes no {task}; it can be asked for: {able}.", param="model")


class LoraRefused(InvalidRequest):
    """A LoRA that is not here, or that this model cannot take."""

    code = "lora_not_found"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, param="loras", code=code)


class ControlRefused(InvalidRequest):
    """A ControlNet that is not here, or that this model cannot take."""

    code = "control_not_found"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, param="control", code=code)


class Unauthorized(AquatintError):
    """No key, or not one of ours."""

    status, type, code = 401, "invalid_request_error", None


class Forbidden(AquatintError):
    """A good key without the scope this route needs."""

    status, type, code = 403, "invalid_request_error", "insufficient_scope"


class NotFound(AquatintError):
    """Nothing at this path or under this id."""

    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(AquatintError):
    """The path exists, the method does not."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, allow: str | None = None) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        """RFC 9110, 15.5.6: the answer names the methods that are."""
        return super().headers() | ({"allow": self.allow} if self.allow else {})


class RequestTimeout(AquatintError):
    """The client is too slow in sending its request."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class Conflict(AquatintError):
    """The state of the thing named forbids this. SDKs would retry a 409, so it is forbidden unless waiting helps."""

    status, type, code, retryable = 409, "invalid_request_error", "conflict", False


class KeyInFlight(Conflict):
    """The first request with this idempotency key is being worked on. SDKs try again, and then get its answer."""

    code, retryable = "idempotency_key_in_use", True

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(
            "The request that first came with this idempotency key is still in progress.", retry_after_s=retry_after_s
        )


class NodeBusy(Conflict):
    """A node has no place for the run that a router sent: another was quicker. Said before the request is read."""

    code, retryable = "node_busy", True

    def __init__(self, holding: Mapping[str, Any]) -> None:
        """holding: what the node does just now, a `common.node_api.Holding` as JSON."""
        super().__init__("The node has no place for this run.")
        self._holding = holding

    def envelope(self) -> dict[str, Any]:
        """With what the node does, so that the router need not ask."""
        return super().envelope() | {"holding": dict(self._holding)}


class Gone(AquatintError):
    """It was here and is not any more, such as a signed link past its time."""

    status, type, code = 410, "invalid_request_error", "expired"


class PayloadTooLarge(AquatintError):
    """The body is larger than this route takes."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class KeyReused(AquatintError):
    """An idempotency key stands for one request; this is another."""

    status, type, code = 422, "invalid_request_error", "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("Keys for idempotent requests can only be used with the same request they were first used with.")


class TooManyRequests(AquatintError):
    """The queue, or this key's share of it, is full."""

    status, type, code = 429, "requests", "rate_limit_exceeded"


class RateLimited(TooManyRequests):
    """A limit of this key that is free again soon."""

    def __init__(self, message: str, told: Mapping[str, str], *, retry_after_s: float) -> None:
        """told: the key's limits, as headers."""
        super().__init__(message, retry_after_s=retry_after_s)
        self._told = told

    def headers(self) -> dict[str, str]:
        """With OpenAI's `x-ratelimit-*`."""
        return super().headers() | dict(self._told)


class QuotaExceeded(TooManyRequests):
    """This key has used up its day. Retry-After is as long as clients heed; the headers tell the true time."""

    type, code, retryable = "insufficient_quota", "insufficient_quota", False

    def __init__(self, message: str, told: Mapping[str, str]) -> None:
        """told: the key's limits, as headers."""
        super().__init__(message, retry_after_s=MAX_RETRY_AFTER_S)
        self._told = told

    def headers(self) -> dict[str, str]:
        """With OpenAI's `x-ratelimit-*`."""
        return super().headers() | dict(self._told)


class HeadTooLarge(AquatintError):
    """The head of the request is larger than any client's."""

    status, type, code = 431, "invalid_request_error", "head_too_large"


class RunCancelled(AquatintError):
    """The run was cancelled by its client or an operator (499 as nginx uses it; no client waits for it)."""

    status, code, retryable = 499, "cancelled", False


class EngineFailed(AquatintError):
    """The engine failed in a way that another try would repeat."""

    code, retryable = "engine_failed", False


class LoraMismatch(EngineFailed):
    """The tensors of a LoRA do not fit the model: nothing of it is applied, rather than a part in silence."""

    status, type, code = 422, "invalid_request_error", "lora_mismatch"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="loras")


class ControlMismatch(EngineFailed):
    """The tensors of a ControlNet do not fit the model."""

    status, type, code = 422, "invalid_request_error", "control_mismatch"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="control")


class NodeFailed(AquatintError):
    """The node, or every node tried, failed under the run."""

    status, code = 502, "node_failed"


class Unavailable(AquatintError):
    """Not now; later, perhaps."""

    status, code = 503, "unavailable"


class NoCapacity(Unavailable):
    """No node can take the run now."""

    code = "no_capacity"

    def __init__(
        self,
        model: str,
        turned_away: Mapping[str, str],
        retry_after_s: float = 5,
        *,
        hopeless: bool = False,
        useless: bool = False,
    ) -> None:
        """turned_away: why, by node. hopeless: none of them could take it even if all were well and idle; useless: and none
        will in a moment."""
        self.hopeless = hopeless
        reasons = "; ".join(f"{node}: {why}" for node, why in turned_away.items()) or "no node is registered"
        told = f"No node can take model {model!r} now ({reasons})."
        super().__init__(told, retry_after_s=retry_after_s, retryable=False if useless else None)


class OutOfDeviceMemory(Unavailable):
    """The device has not enough memory for this load or this run; the same request would fail again on it.

    `param` is `size` where a smaller picture would do, and the message then names a size.
    """

    code, retryable = "out_of_memory", False


class CatalogUnavailable(Unavailable):
    """The catalog cannot be reached, so nothing is accepted: a run nobody can record is a run nobody can find."""

    code = "catalog_unavailable"

    def __init__(self, message: str = "The catalog cannot be reached; nothing was started.") -> None:
        super().__init__(message, retry_after_s=5)


class StorageFull(Unavailable):
    """Asset bytes cannot be written."""

    code = "storage_full"


class DeadlineExceeded(AquatintError):
    """The run did not end in the time it was given."""

    status, code = 504, "deadline_exceeded"


class WaitedTooLong(DeadlineExceeded):
    """The run waited for a node until its time was over."""

    def __init__(self, *, own: bool) -> None:
        """own: its client has set that time, and gains nothing by another try it did not ask for."""
        super().__init__("The request waited for a node until its time was over.", retryable=not own)


class DeadlineTooSoon(DeadlineExceeded):
    """The client's deadline cannot be met, as predicted when the request came."""

    code = "deadline_too_soon"

    def __init__(self, finish_s: float, deadline_s: float, *, alone_s: float) -> None:
        """finish_s: until it would be done; alone_s: the same on a fleet without others. All from now."""
        hopeless = alone_s > deadline_s
        super().__init__(
            f"The run would be done in about {finish_s:.1f} s, and its deadline is in {deadline_s:g} s. Nothing was started.",
            retryable=not hopeless,
            retry_after_s=None if hopeless else finish_s - deadline_s,
        )
