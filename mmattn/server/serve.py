"""The HTTP endpoint of a run: `mmattn predict` for programs in any language."""

import asyncio
import logging
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Literal

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from mmattn.config import ExtractConfig
from mmattn.console import complain, say
from mmattn.files import printable
from mmattn.server.access import Guard, is_loopback, listen, url_of
from mmattn.server.openapi import document
from mmattn.server.pool import Limits, Pool, Setup, open_pool

UPLOADS = "mmattn-serve-"
ZIP = b"PK\x03\x04"  # the first bytes of a feature file, and of no raw clip
LOOK = 0.3  # seconds between checks that the client is still there
LINGER = 20.0  # seconds in which a refused client may keep sending
PAGE_MAY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve_run(
    run: Path,
    host: str,
    port: int,
    limits: Limits,
    checkpoint: Literal["best", "final"] = "best",
    calibrated: bool = True,
    media: ExtractConfig | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; finishes those that have begun.

    Args:
        run, checkpoint, calibrated, media: see `load_run`.
        host, port: where to listen; port 0 is any free one.
        limits: see `Limits`.

    Raises:
        UserError: the run or the address cannot be used.
    """
    limits.check()
    with listen(host, port) as listener, tempfile.TemporaryDirectory(prefix=UPLOADS) as uploads:
        if not (own := is_loopback(host)):
            complain(
                f"warning: --host {host}: anyone who can reach this address can send clips; there "
                "is no password and no encryption (a reverse proxy in front can add both)"
            )
        media = media or ExtractConfig()
        setup = Setup(run, checkpoint, calibrated, media, Path(uploads), limits)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        say(f"{run}: starting")
        with suppress(KeyboardInterrupt), open_pool(setup) as pool:
            for line in pool.about["example"]["trust"]:
                say(line)
            if reason := pool.about["no_raw_clips"]:
                say(f"Only feature files can be predicted: {reason}")
            logging.getLogger("python_multipart").setLevel(logging.ERROR)  # not clients' mistakes
            config = uvicorn.Config(
                Guard(Endpoint(pool, setup).app(), own),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                timeout_graceful_shutdown=round(limits.seconds + LINGER),
                server_header=False,
            )
            say(f"{url_of(listener)}: POST clips to /predict; see /docs; Ctrl-C stops the server")
            uvicorn.Server(config).run([listener])
        say("stopped")


class Endpoint:
    """Answers requests, by a pool and a bounded number of places to wait for it."""

    def __init__(self, pool: Pool, setup: Setup):
        self.pool, self.uploads, self.limits = pool, setup.uploads, setup.limits
        self.places, self.taken = self.limits.workers + self.limits.queue, 0

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/predict", self._predict, methods=["POST"]),
            Route("/health", self._health),
            Route("/openapi.json", self._openapi),
            Route("/docs", self._page),
            Route("/", self._page),
        ]
        return Starlette(
            routes=routes, exception_handlers={HTTPException: _refuse, Exception: _fail}
        )

    async def _predict(self, request: Request) -> Response:
        if self.taken == self.places:
            raise HTTPException(503, "all places are taken; try again later", {"Retry-After": "1"})
        self.taken += 1
        try:
            with tempfile.TemporaryDirectory(dir=self.uploads) as folder:
                async with asyncio.timeout(self.limits.seconds):
                    path, name = await save(request, Path(folder), int(1e6 * self.limits.size))
                answer = asyncio.ensure_future(self.pool.predict(path, name))
                while not (await asyncio.wait({answer}, timeout=LOOK))[0]:
                    if await request.is_disconnected():
                        answer.cancel()
                        raise ClientDisconnect
                status, said = answer.result()
                return JSONResponse(said, status)
        except TimeoutError as error:
            raise HTTPException(408, f"the upload took over {self.limits.seconds:g} s") from error
        except (ClientDisconnect, asyncio.CancelledError):  # also at a second Ctrl-C
            return Response(status_code=400)  # not read: the client is gone
        finally:
            self.taken -= 1

    async def _health(self, request: Request) -> Response:
        up = self.pool.up
        state = {"status": "ok" if up else "starting", "run": self.pool.about["run"]}
        state |= {"workers": up, "places": self.places, "taken": self.taken}
        return JSONResponse(state, 200 if up else 503)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(document(self.pool.about, self.limits.size, self.limits.seconds))

    async def _page(self, request: Request) -> Response:
        text = files("mmattn.server").joinpath("docs.html").read_text(encoding="utf-8")
        style = files("mmattn.report").joinpath("page.css").read_text(encoding="utf-8")
        text = text.replace("/* page.css of the reports stands here */", style)
        return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_MAY})


class Refusal(JSONResponse):
    """An answer to a client that may still be sending, and may continue for a while.

    If the connection closed at once, most clients would fail before they read the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and discard what the client sends."""

        async def send_then_wait(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        while (await receive()).get("more_body"):
                            pass
                message = {"type": "http.response.body"}
            await send(message)

        await super().__call__(scope, receive, send_then_wait)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # as the table of handlers says
    headers = {**(error.headers or {}), "Connection": "close"}
    return Refusal({"detail": error.detail}, error.status_code, headers)


async def _fail(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": f"the server failed: {error!r:.200}"}, 500)


async def save(request: Request, folder: Path, most: int) -> tuple[Path, str]:
    """Write the clip of a request to a folder; returns its path and the client's name for it.

    The clip is the one file of a form, or else the body, whose name may be in the query.

    Raises:
        HTTPException: it has more than `most` bytes, or is a form without exactly one file.
        ClientDisconnect: the client disconnected.
    """
    if int(request.headers.get("content-length", 0)) > most:
        raise _too_large(most)
    request = Request(request.scope, _limited(request.receive, most))
    partial = folder / "partial"
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=10) as form:
            given = [part for part in form.values() if isinstance(part, UploadFile)]
            if len(given) != 1:
                raise HTTPException(400, "expected a form with one file, found none")
            name = given[0].filename or ""
            with partial.open("wb") as file:
                await asyncio.to_thread(shutil.copyfileobj, given[0].file, file)
    else:
        name = request.query_params.get("name", "")
        with partial.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
    with partial.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
    name = printable(name) or ("clip.npz" if is_zip else "clip")
    suffix = PurePath(name).suffix
    path = folder / ("clip" + (suffix if re.fullmatch(r"\.\w{1,9}", suffix, re.ASCII) else ""))
    return partial.rename(path), name


def _limited(receive: Receive, most: int) -> Receive:
    left = most

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(most)
        return message

    return limited


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"expected at most {most / 1e6:g} MB (--max-size)")
