"""What goes wrong between us and an OpenAI-compatible server: what it means, and whether another try may do."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

RETRYABLE = {408, 409, 429}  # and every 5xx

# With these every other call fails too: no such key, no credit, no right, no such model or address.
FATAL = {401, 402, 403, 404}

REMEDIES = {
    401: "check the API key",
    402: "check the account's credit",
    403: "check what the API key may use",
    404: "check the model's name and the base URL, which often ends with /v1",
    429: "wait, or lower the concurrency",
}

SEE_LOG = "see the server's log"


class Fault(Exception):
    """One try that failed; the message is one line without the remedy.

    Attributes:
        remedy: what a person can do about it.
        passing: another try may do.
        fatal: every other call will fail in the same way, once tries are used up.
        asked: seconds the server wants to be left alone; 0 where it does not say.
    """

    def __init__(
        self, message: str, remedy: str = SEE_LOG, passing: bool = True, fatal: bool = False, asked: float = 0.0
    ):
        super().__init__(message)
        self.remedy, self.passing, self.fatal, self.asked = remedy, passing, fatal, asked


def fault_of(error: Exception, answered: bool) -> Fault:
    """What an error of the `openai` client, or of the transport below it, means.

    Args:
        answered: whether the server has answered before. One that has and is not there now may come back, at its old
            address; one that never has will not be there for the other calls either.
    """
    if isinstance(error, openai.APIStatusError):
        return refusal(error.body, error.status_code, error.response.headers)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Fault("no answer in time", "check the base URL, or raise the timeout")
    if isinstance(error, openai.APIConnectionError):
        causes = _causes(error)
        # By name: the client's transport is httpx in one version and httpx2 in the next.
        if any(type(cause).__name__ == "ConnectError" for cause in causes):
            remedy = "check the base URL and that the server runs"
            return Fault(f"no connection ({one_line(causes[0])})", remedy, fatal=not answered)
        return Fault(f"the connection broke ({one_line(causes[0])})")
    if isinstance(error, openai.APIError):  # an error event in the middle of a stream
        return refusal(error.body)
    return Fault(f"a broken answer ({one_line(error)})")


def refusal(body: object, status: int | None = None, headers: Any = None) -> Fault:
    """The server said no.

    Args:
        body: its error object, or any text.
        status: of HTTP; None where the error came in the body of a 200, which may name a status itself.
        headers: for `Retry-After`.
    """
    fields = body if isinstance(body, dict) else {}
    if status is None and str(fields.get("code", "")).isdecimal():
        status = int(fields["code"])
    said = fields.get("message") or fields.get("detail") or fields.get("error") or body
    message = f"HTTP {status}" if status else "an error"
    spent = "insufficient_quota" in (fields.get("code"), fields.get("type"))  # a 429 that no waiting heals
    passing = not spent and (status is None or status in RETRYABLE or status >= 500)
    remedy = REMEDIES.get(402 if spent else status, SEE_LOG if passing else "change the request")
    return Fault(
        f"{message}: {one_line(said)}" if said else message,
        remedy,
        passing=passing,
        fatal=spent or status in FATAL,
        asked=_retry_after(headers) if headers else 0.0,
    )


def one_line(words: object) -> str:
    """Anybody's words on one line, cut where they are long."""
    return " ".join(str(words).split())[:300] or type(words).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """What led to the error, the nearest first; the error itself where nothing did."""
    causes = []
    cause = error
    while cause := cause.__cause__ or cause.__context__:
        causes.append(cause)
    return causes or [error]


def _retry_after(headers: Any) -> float:
    """Seconds that `Retry-After` asks for, as a number or as a date; 0 without it, or where it makes no sense."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        then = _date(asked)
        # Against the server's own clock where it is given: ours may be minutes off.
        seconds = (then - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds() if then else 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):  # its answers to nonsense
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
