"""What goes wrong between us and an OpenAI-compatible server: what it means, and whether another try may do."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

RETRYABLE = {408, 409, 429}  # and every 5xx

# With these every other call fails too: no such key, no credit.
FATAL = {401, 402}

# With these too, no right and no such model or address, unless the server has answered: gateways also give them to a
# single question, 403 where it is flagged, 404 where nobody can look at its pictures.
FATAL_AT_FIRST = {403, 404, 405}

# Some servers say 400 and mean 404; these are what they call it beside the message.
NO_MODEL = {"model_not_found", "invalid_model"}

REMEDIES = {
    401: "check the API key",
    402: "check the account's credit",
    403: "check what the API key may use",
    404: "check the model's name and the base URL, which often ends with /v1",
    405: "check the base URL, which often ends with /v1",
    429: "wait, or lower the concurrency",
}

SEE_LOG = "see the server's log"


class Fault(Exception):
    """One try that failed; the message is one line without the remedy.

    Attributes:
        remedy: what a person can do about it.
        passing: another try may do.
        fatal: every other call will fail in the same way, once tries are used up.
        fatal_at_first: the same, unless the server has answered another call.
        asked: seconds the server wants to be left alone; 0 where it does not say.
    """

    def __init__(
        self, message: str, remedy: str = SEE_LOG, passing: bool = True, fatal: bool = False,
        fatal_at_first: bool = False, asked: float = 0.0,
    ):  # fmt: skip
        super().__init__(message)
        self.remedy, self.passing, self.asked = remedy, passing, asked
        self.fatal, self.fatal_at_first = fatal, fatal_at_first


def fault_of(error: Exception) -> Fault:
    """What an error of the `openai` client, or of the transport below it, means."""
    if isinstance(error, openai.APIStatusError):
        return refusal(error.body, error.status_code, error.response.headers)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Fault("no answer in time", "check the base URL, or raise the timeout")
    if isinstance(error, openai.APIConnectionError):
        causes = _causes(error)
        # By name: the client's transport is httpx in one version and httpx2 in the next.
        if any(type(cause).__name__ == "ConnectError" for cause in causes):
            remedy = "check the base URL and that the server runs"
            # One that has answered may come back, at its old address.
            return Fault(f"no connection ({one_line(causes[0])})", remedy, fatal_at_first=True)
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
    named = {str(fields.get(key)) for key in ("code", "type")}
    # A 429 that no waiting heals, and a 400 that is none.
    meant = 402 if "insufficient_quota" in named else 404 if named & NO_MODEL else status
    passing = meant is None or meant in RETRYABLE or meant >= 500
    remedy = REMEDIES.get(meant, SEE_LOG if passing else "change the request")
    return Fault(
        f"{message}: {one_line(said)}" if said else message,
        remedy,
        passing=passing,
        fatal=meant in FATAL,
        fatal_at_first=meant in FATAL_AT_FIRST,
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
