"""Errors of boto3, pyarrow and deltalake: which of them no retry can help, and the one line with the remedy for each.

pyarrow and deltalake say what a store answered only in the text of an error, so that text is read here, and only here.
"""

import errno
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoAnswer
from deltalake.exceptions import DeltaError
from pyarrow import ArrowInvalid
from urllib3.exceptions import HTTPError

from lake.errors import Refused, Unavailable, one_line

T = TypeVar("T")

ENDPOINT = "--endpoint-url or AWS_ENDPOINT_URL"
AWAY = (OSError, DeltaError, BotoCoreError, ClientError, Unavailable)
"""Errors of the libraries when a lake or its store cannot be read or written now."""
CHANGED = {"PreconditionFailed", "412", "NoSuchKey", "404"}
"""Answers that say something about an object, not about the store."""

# Codes as `_letters` spells them: boto3 and deltalake say ExpiredToken, pyarrow EXPIRED_TOKEN.
_RENEW = "renew the credentials"
_SET_CLOCK = "set the clock of this machine (with NTP)"
_EXPIRED = ("the credentials have expired", _RENEW)
_SKEWED = ("the clock of this machine is wrong", _SET_CLOCK)
_REJECTED = ("the store rejects the credentials", _RENEW)
_FULL = ("the store is full", "free space or raise the quota there")
# AWS says this of a request dated 15 minutes ago, and of credentials that ended meanwhile.
_LATE = ("the clock of this machine is wrong, or its credentials have expired", f"{_SET_CLOCK}, or {_RENEW}")
# What affects every object alike, with the remedy.
_EVERYWHERE = {
    "expiredtoken": _EXPIRED,
    "expiredtokenexception": _EXPIRED,
    "tokenrefreshrequired": _EXPIRED,
    "requesttimetooskewed": _SKEWED,
    "requestinthefuture": _SKEWED,
    "requestexpired": _LATE,
    "authfailure": _REJECTED,
    "incompletesignature": _REJECTED,
    "invalidaccesskeyid": _REJECTED,
    "invalidclienttokenid": _REJECTED,
    "invalidtoken": _REJECTED,
    "missingauthenticationtoken": _REJECTED,
    "signaturedoesnotmatch": _REJECTED,
    "unrecognizedclient": _REJECTED,
    "unrecognizedclientexception": _REJECTED,
    "insufficientstorage": _FULL,
    "quotaexceeded": _FULL,
    "xminioadminbucketquotaexceeded": _FULL,
    "xminiostoragefull": _FULL,
}
# 4xx that pass: time-outs, bodies that broke off, conflicts of commits, too many requests.
_PASSING_STATUS = {404, 408, 409, 412, 425, 429}
_PASSING_CODES = {"baddigest", "incompletebody", "requesttimeout", "slowdown", "throttling", "throttlingexception"}

# What this machine has run out of, and what helps.
_STARVED = {
    errno.ENOSPC: "free space there (TMPDIR puts temporary files on another disk)",
    errno.EROFS: "make it writable (TMPDIR puts temporary files on another disk)",
    errno.EDQUOT: "free space there (TMPDIR puts temporary files on another disk)",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "use fewer workers",
}
_DENIED_HERE = {errno.EACCES, errno.EPERM}

_NUMBER = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)|\[[Ee]rrno (\d+)\]")
# The more exact first: pyarrow calls what it does not know UNKNOWN and has the name behind it.
_CODES = (re.compile(r"ExceptionName: (\w+)|<Code>([\w.]+)</Code>"), re.compile(r"AWS Error (\w+)"))
_OTHER_REGION = "incorrectly configured region"
_STATUS = re.compile(r"\(HTTP status (\d{3})\)|non-2xx status code \W*(\d{3})\b")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>|operation: (?:.*Message: )?(.*)")
# Arrow repeats a request that failed, but not the reading of an answer that broke off; it has one exception for all.
_ARROW_IS_AWAY = re.compile(
    "AWS Error (INTERNAL_FAILURE|NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT"
    r"|UNKNOWN(?! \(HTTP status [34]))"
)
# Data files, commits and checkpoints, as who reads them calls them.
_OF_TABLES = re.compile(r"parquet|_delta_log|checkpoint|contiguous commit|thrift|Json error", re.IGNORECASE)
# As OpenSSL, curl and rustls say it.
_UNTRUSTED = re.compile("CERTIFICATE_VERIFY_FAILED|curlCode: 60|invalid peer certificate")


class _Answer(NamedTuple):
    """The answer of a store: its code in letters only and as spelled, HTTP status (0: unknown), message.

    `has_reason` is false where the answer had no body, as answers to HEAD: then the status is all there is.
    """

    code: str
    name: str
    status: int
    message: str
    has_reason: bool = True


def final_error(error: BaseException, uri: str | None = None) -> Unavailable | Refused | None:
    """Return the one-line exception to raise instead when no retry can help; None when one may.

    Reads errors of boto3, pyarrow, deltalake and the operating system. `uri` is what could not be read or written.
    ``Unavailable`` (exit code 1): the same command succeeds once the machine or its credentials are put right.
    ``Refused`` (exit code 2): these credentials, this user or this bucket will not do.
    """
    if everywhere := outage(error):
        return everywhere
    where = repr(uri) if uri else "the store"
    if _errno(error) in _DENIED_HERE:
        return Refused(f"permission denied at {where} ({one_line(error)}): check its permissions and its owner")
    answer = _answer(error)
    if answer is None or answer.code in _PASSING_CODES:
        return None
    if answer.code == "nosuchbucket":
        return Refused(f"the bucket of {where} does not exist: create it or correct the uri")
    if answer.status in (401, 403) or (answer.status == 400 and not answer.has_reason):
        return _denied(answer, where)
    if 300 <= answer.status < 500 and answer.status not in _PASSING_STATUS:
        return Refused(f"the store refuses {where}: {_said(answer)}: check the uri and AWS_REGION")
    return None


def outage(error: BaseException) -> Unavailable | None:
    """Return what affects every other object as well, with its remedy: it does not make this one unreadable."""
    if isinstance(error, Unavailable):
        return None
    text, then = one_line(error), "then run the same command again"
    if isinstance(error, NoCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        return Unavailable(f"{text}: {_RENEW}, {then}")
    if remedy := _STARVED.get(_errno(error)):
        return Unavailable(f"{text}: {remedy}, {then}")
    if _UNTRUSTED.search(text):
        remedy = "set AWS_CA_BUNDLE to a file with its certificate authority"
        return Unavailable(f"the certificate of the store, or of a proxy, is not trusted: {remedy}, {then}")
    answer = _answer(error)
    if answer is None:
        return None
    fault = _EVERYWHERE.get(answer.code, _FULL if answer.status == 507 else None)
    if fault is None:
        return None
    what, remedy = fault
    return Unavailable(f"{what} ({answer.name}): {remedy}, {then}")


def damage(error: BaseException) -> Refused | None:
    """Return what to raise instead where a table of a lake is not whole; None where it may be."""
    # DuckDB passes on what Arrow said.
    is_reading = isinstance(error, DeltaError | ArrowInvalid | OSError) or type(error).__module__ == "_duckdb"
    if not is_reading or is_passing(error) or not _OF_TABLES.search(text := one_line(error)):
        return None
    return Refused(f"a table of the lake cannot be read ({text[:200]}): look with `worldlake repair --check`")


def explain(error: Exception, uri: str, endpoint: str | None) -> Refused | Unavailable:
    """Turn an error of boto3, at the start of a command, into one line with the remedy."""
    where = endpoint or "AWS"
    if isinstance(error, NoCredentialsError):
        return no_credentials()
    answer = _answer(error)
    if answer is None and (everywhere := outage(error)):
        return everywhere
    if answer is None:
        return Unavailable(
            f"{where} does not answer ({type(error).__name__}): check {ENDPOINT}, the proxy and the network"
        )
    if _EVERYWHERE.get(answer.code) is _REJECTED:
        names = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE"
        return Refused(f"{where} rejects the credentials ({answer.name}): check {names}")
    if final := final_error(error, uri):
        return final
    if answer.status >= 500 or answer.status == 429:
        return Unavailable(f"{where} answers {answer.status} {answer.name}: try again later")
    return Refused(f"{where} refuses {uri!r}: {_said(answer)}")


def no_credentials() -> Refused:
    """Return what to say where boto3 finds no credentials."""
    return Refused("no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def is_transient(error: BaseException) -> bool:
    """Return whether the same read may succeed in another run: the store or this machine is at fault."""
    if outage(error) or is_away(error):
        return True
    if isinstance(error, ClientError):
        return _status(error) in (401, 403)
    return isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EIO


def is_passing(error: BaseException) -> bool:
    """Return whether what could not be read may be whole: the store, the credentials or this machine are at fault."""
    return bool(final_error(error)) or is_away(error)


def read_undamaged(read: Callable[[], T]) -> T | None:
    """Return what reading a file of a table returns; None where it is damaged or gone. Raises what may pass."""
    try:
        return read()
    except (ArrowInvalid, OSError) as error:
        if is_passing(error):
            raise
        return None


def is_away(error: BaseException) -> bool:
    """Return whether the same request may succeed in a minute."""
    if _UNTRUSTED.search(str(error)):
        return False
    if isinstance(error, ClientError):
        return _status(error) >= 500 or _status(error) == 429
    if isinstance(error, OSError) and error.errno is None and _ARROW_IS_AWAY.search(str(error)):
        return True
    return isinstance(
        error,
        NoAnswer | HTTPClientError | IncompleteReadError | HTTPError | Unavailable | ConnectionError | TimeoutError,
    )


def _denied(answer: _Answer, where: str) -> Refused | Unavailable:
    needed = "s3:ListBucket and s3:GetObject, and for a lake s3:PutObject and s3:DeleteObject"
    if answer.has_reason:
        return Refused(f"access to {where} is denied ({answer.name}): these credentials need {needed}")
    # The answer to HEAD has no body, so it does not say which of these it is; the next start of the command does.
    return Unavailable(
        f"access to {where} is denied ({answer.name}, without a reason): the credentials may have expired, the clock "
        f"of this machine may be wrong, or these credentials need {needed}"
    )


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


def _errno(error: BaseException) -> int:
    """Return the number of an error of the operating system, also where only the text has it; 0 for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(next(filter(None, found.groups()))) if found else 0


def _answer(error: BaseException) -> _Answer | None:
    """Return what a store answered; None where the error is of another kind."""
    if isinstance(error, ClientError):
        said = error.response["Error"]
        # boto3 puts the status in the place of a code that is not there.
        has_reason = not said["Code"].isdigit()
        return _Answer(
            _letters(said["Code"]), said["Code"], _status(error), one_line(said.get("Message", "")), has_reason
        )
    text = one_line(error)
    if _OTHER_REGION in text:
        return _Answer("permanentredirect", "PermanentRedirect", 301, "it is in another region")
    status = _first(_STATUS, text)
    name = next((code for pattern in _CODES if (code := _first(pattern, text))), status)
    if not name:
        return None
    code, has_reason = _letters(name), name != status and "No response body" not in text
    known = 403 if code == "accessdenied" else int(status or 0)
    name = status if code == "unknown" else name
    return _Answer(code, name, known, _first(_MESSAGE, text) if has_reason else "", has_reason)


def _said(answer: _Answer) -> str:
    return ", ".join(filter(None, (answer.name, answer.message)))


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return next(filter(None, found.groups()), "") if found else ""


def _letters(code: str) -> str:
    return re.sub(r"[^a-z0-9]", "", code.lower())
