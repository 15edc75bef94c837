"""What the hub's refusals mean in this project's tree of errors, and what to do about them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from server.core.errors import HubBusy, HubDenied, HubUnreachable, LlmspellError, ModelNotFound, PullFailed
from server.store.hub_settings import DEFAULT_ENDPOINT, HubSettings

_TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_MAX_QUOTED_LEN = 300
_GATED = "GatedRepo"


def unreachable(host: str, error: Exception) -> HubUnreachable:
    """Build the error for a hub that does not answer."""
    return HubUnreachable(
        f"{host} does not answer ({_reason(error)}). Check the network, HTTPS_PROXY and HF_ENDPOINT; what has been "
        "downloaded is kept, and the same command goes on from there."
    )


def no_way_out(error: Exception) -> PullFailed:
    """Build the error for settings of the environment with which no connection can be made at all."""
    return PullFailed(
        f"The environment's settings for the network cannot be used ({_reason(error)}). Correct HTTPS_PROXY, "
        "HTTP_PROXY, ALL_PROXY and NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
    )


def no_hub(endpoint: str) -> PullFailed:
    """Build the error for an HF_ENDPOINT that is no address."""
    return PullFailed(
        f"HF_ENDPOINT is {endpoint[:200]!r}, which is not the address of a hub. Write one such as "
        f"{DEFAULT_ENDPOINT}, or unset it."
    )


def offline(repository: str) -> HubUnreachable:
    """Build the error for a download that HF_HUB_OFFLINE forbids."""
    return HubUnreachable(
        f"HF_HUB_OFFLINE is set, so nothing is asked about {repository}. Unset it to download; models that are here "
        "already can be used."
    )


def redirected_astray(repository: str, where: str) -> PullFailed:
    """Build the error for redirects that are not followed."""
    return PullFailed(f"The hub redirects the download of {repository} {where}; check HF_ENDPOINT.")


def error_of_response(
    status: int, headers: Mapping[str, str], body: bytes, repository: str, settings: HubSettings, *, at_hub: bool
) -> LlmspellError:
    """Turn a refusal of the hub, or of the storage it sends us to, into an error."""
    said = headers.get("x-error-message", "")[:_MAX_QUOTED_LEN] or _quoted(body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _busy(headers, settings)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        return HubUnreachable(
            f"The hub failed with HTTP status {status} ({said}). Try again later; what has been downloaded is kept.",
            retry_after=retry_after_seconds(headers),
        )
    if not at_hub:  # the permission in an address of storage ends after an hour
        return HubUnreachable(f"The hub's storage refuses {repository} with HTTP status {status} ({said}). Try again.")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return HubDenied(_denied(status, headers.get("x-error-code", ""), said, repository, settings))
    if status == HTTPStatus.NOT_FOUND:
        return _not_found(headers.get("x-error-code", ""), repository, settings)
    return PullFailed(f"The hub refuses {repository} with HTTP status {status} ({said}).")


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read ``Retry-After``, in seconds or as a date, or the ``t`` of ``RateLimit``."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return _rate_limit_seconds(headers.get("ratelimit", ""))
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - (now or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _rate_limit_seconds(value: str) -> float | None:
    for part in value.split(";"):
        name, _, number = part.strip().partition("=")
        if name == "t" and number.isascii() and number.isdigit():
            return float(number[:9])
    return None


def _busy(headers: Mapping[str, str], settings: HubSettings) -> HubBusy:
    seconds = retry_after_seconds(headers)
    when = "in a few minutes" if seconds is None else f"in {math.ceil(seconds)} s"
    advice = (
        "" if settings.token else f" Who is logged in may ask more often: set HF_TOKEN to a token from {_TOKENS_PAGE}."
    )
    return HubBusy(
        f"The hub limits how often it is asked (HTTP status 429). Try again {when}; what has been downloaded is kept."
        f"{advice}",
        retry_after=seconds,
    )


def _denied(status: int, code: str, said: str, repository: str, settings: HubSettings) -> str:
    page = f"{settings.shown}/{repository}"
    how_to_log_in = f"create a token with read access at {_TOKENS_PAGE} and set HF_TOKEN to it, or run `hf auth login`"
    if code == _GATED or "gated" in said.lower() or "restricted" in said.lower():
        if not settings.token:
            return f"{repository} is gated: accept its conditions at {page}, {how_to_log_in}, and pull again."
        return (
            f"{repository} is gated, and the account of your token has no access yet: accept its conditions at {page}; "
            "where its authors decide, wait for their word. A fine-grained token also needs the permission to read "
            "gated repositories."
        )
    if not settings.token:
        return (
            f"There is no repository {repository}, or it is private. Check its name; if it is yours, {how_to_log_in}."
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return f"The hub does not accept the token for {repository} ({said}): {how_to_log_in}."
    return f"The token does not allow reading {repository} ({said}): {how_to_log_in}."


def _not_found(code: str, repository: str, settings: HubSettings) -> ModelNotFound:
    page = f"{settings.shown}/{repository}"
    if code in {"EntryNotFound", "RevisionNotFound"}:
        return ModelNotFound(
            f"{repository} no longer has this file or version; look at {page}/tree/main.", param="model"
        )
    return ModelNotFound(
        f"There is no repository {repository} at {settings.shown}. Check its name; for a private one, set HF_TOKEN.",
        param="model",
    )


def _quoted(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())[:_MAX_QUOTED_LEN]
    return "no reason given" if not text or text.startswith("<") else text


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
