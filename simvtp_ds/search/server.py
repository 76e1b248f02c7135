"""The search page over HTTP, for the browser of this machine alone; a request names clips by their numbers."""

from __future__ import annotations

import socket
import tempfile
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simvtp_ds.search.guard import Guard
from simvtp_ds.search.index import Entry
from simvtp_ds.search.media import check_unchanged, respond
from simvtp_ds.search.posters import Posters
from simvtp_ds.search.searcher import Question, Searcher, SearchError

HOST = "127.0.0.1"
LARGEST_UPLOAD = 512 * 2**20  # bytes
CONNECTIONS = 128
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/page_clips.js": ("page_clips.js", "text/javascript"),
}


class Handlers:
    """What each address answers."""

    def __init__(self, searcher: Searcher, posters: Posters, about: dict[str, Any]) -> None:
        self._searcher, self._posters = searcher, posters
        self._about = about
        self._upload = threading.Semaphore(1)  # one at a time: each takes a decoder and much of a core

    def about(self, _request: Request) -> Response:
        """The model, the set, and what is wrong with it."""
        return JSONResponse({**self._about, "largest_upload": LARGEST_UPLOAD})

    def clips(self, request: Request) -> Response:
        """Answer a question."""
        asked = request.query_params
        question = Question(
            sentence=asked.get("query", ""),
            like=_number(asked["like"], "like") if "like" in asked else None,
            only=asked.get("filter", ""),
            start=_number(asked.get("start", "0"), "start"),
            limit=_number(asked.get("limit", "24"), "limit"),
        )
        found = self._searcher.find(question)
        if question.like is not None:
            found["like"] = self._searcher.told(question.like)
        return JSONResponse(found)

    async def describe(self, request: Request) -> Response:
        """Captions of the file in the request's body."""
        if not self._upload.acquire(blocking=False):
            raise HTTPException(429, "Another file is being looked at: try again in a moment.")
        try:
            with tempfile.NamedTemporaryFile(prefix="simvtp-search-") as file:
                size = 0
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > LARGEST_UPLOAD:
                        raise HTTPException(413, f"The file is too large: {LARGEST_UPLOAD >> 20} MiB are the most.")
                    await run_in_threadpool(file.write, chunk)
                await run_in_threadpool(file.flush)
                found = await run_in_threadpool(self._searcher.describe, Path(file.name), "The file")
                return JSONResponse(found)
        finally:
            self._upload.release()

    def video(self, request: Request) -> Response:
        """The bytes of a clip."""
        return respond(request, self._entry(request), self._searcher.retriever.data.storage)

    def poster(self, request: Request) -> Response:
        """A picture of a clip."""
        entry = self._entry(request)
        check_unchanged(entry)
        try:
            return Response(self._posters.picture(entry.clip), media_type="image/jpeg")
        except ValueError as error:
            raise HTTPException(410, f"{entry.clip.clip_id} cannot be decoded: {error}.") from None

    def _entry(self, request: Request) -> Entry:
        number, entries = request.path_params["number"], self._searcher.index.entries
        if number >= len(entries):
            raise HTTPException(404, f"There is no clip {number}: this index has {len(entries)} clips, from 0 on.")
        return entries[number]


def make_app(searcher: Searcher, posters: Posters, about: dict[str, Any]) -> Starlette:
    """The page and what it asks for.

    Args:
        searcher, posters: Answer.
        about: What the page says of model and set, for JSON.
    """
    handlers = Handlers(searcher, posters, about)
    page = {path: (files("simvtp_ds.search").joinpath(name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}

    def static(request: Request) -> Response:
        body, kind = page[request.scope["path"]]
        return Response(body, media_type=kind)

    async def told(_request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        return JSONResponse({"error": str(error)}, 400)

    return Starlette(
        routes=[
            *(Route(path, static) for path in PAGE),
            Route("/api/about", handlers.about),
            Route("/api/clips", handlers.clips),
            Route("/api/captions", handlers.describe, methods=["POST"]),
            Route("/clips/{number:int}/video", handlers.video),
            Route("/clips/{number:int}/poster", handlers.poster),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={HTTPException: told, SearchError: told},
    )


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0: any that is free.

    Raises:
        ValueError: the port cannot be had.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--port {port} cannot be listened on ({reason}): choose another, or 0 for any") from error


def make_server(app: Starlette) -> uvicorn.Server:
    """Serves on sockets handed to its `run`, until SIGINT or SIGTERM, or until `should_exit`."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,  # browsers keep streams of videos open
            lifespan="off",
            ws="none",
        )
    )


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise SearchError(f"{name} is {text[:40]!r}; give a number from 0 on.")
    return int(text)
