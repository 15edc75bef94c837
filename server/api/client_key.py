"""Who sends a request, as far as its API key tells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

_SCHEME = "bearer "


def client_key(headers: Mapping[str, str]) -> str | None:
    """Return a name for the API key of a request; ``None`` if it has none.

    The name is a digest: nothing behind the HTTP layer needs the secret itself.
    """
    authorization = headers.get("authorization", "")
    secret = authorization[len(_SCHEME) :].strip() if authorization.lower().startswith(_SCHEME) else ""
    return hashlib.sha256(secret.encode()).hexdigest()[:32] if secret else None
