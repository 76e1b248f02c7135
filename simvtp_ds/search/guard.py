"""What is refused before it is looked at, and the headers of every answer.

A page of another site can neither read from here (under a name that resolves to this machine) nor make the browser ask:
the Host header must name this machine, and what the browser says of the request's origin must be this page.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what other sites ask for, and puts the same headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = refusal(scope["method"], scope["path"], Headers(scope=scope))
        app = JSONResponse({"error": reason}, 403) if reason else self._app
        await app(scope, receive, send_with_headers)


def refusal(method: str, path: str, headers: Mapping[str, str]) -> str:
    """Why a request is refused; empty: it is not.

    Against DNS rebinding (a foreign name that resolves to this machine) the Host header is looked at, against pages of
    other sites Origin and Sec-Fetch-Site. A link to the page itself may stand anywhere.
    """
    host = headers.get("host", "")
    if host.partition(":")[0] not in NAMES:
        return f"This page answers under the names {' and '.join(NAMES)} alone, not {host!r}."
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return f"A page of {origin} may not use this one."
    is_link = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_link:
        return "A page of another site may not use this one."
    return ""
