"""The HTTP endpoint of a run: what `mmattn predict` says, for programs in any language."""

import asyncio
import fcntl
import logging
import math
import re
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from socket import socket

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmattn.config import ExtractConfig
from mmattn.console import complain, say
from mmattn.errors import UserError
from mmattn.files import printable
from mmattn.server.access import Guard, is_loopback, listen, url_of
from mmattn.server.openapi import document
from mmattn.server.pool import Answer, Pool, Setup, open_pool

UPLOADS = "mmattn-serve-"
ZIP = b"PK\x03\x04"  # how a feature file begins, and no raw clip
LINGER = 5.0  # seconds in which a client may go on to send what is not read
PAGE_MAY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """What a server takes: processes, requests that wait, MB of a request, seconds, GB."""

    workers: int
    queue: int
    size: float
    seconds: float
    memory: float

    def __post_init__(self):
        """Raise UserError at the first that cannot be."""
        for option, value, right, expected in (
            ("workers", self.workers, self.workers > 0, "1 or more"),
            ("queue", self.queue, self.queue >= 0, "0 or more"),
            ("max-size", self.size, 0 < self.size < math.inf, "above 0 (MB)"),
            ("timeout", self.seconds, 0 < self.seconds < math.inf, "above 0 (seconds)"),
            ("memory", self.memory, 0 < self.memory < math.inf, "above 0 (GB)"),
        ):
            if not right:
                raise UserError(f"--{option} {value:g}: expected {expected}")

    @property
    def bytes(self) -> int:
        """The largest body of a request."""
        return int(1e6 * self.size)


def serve_run(
    run: Path,
    host: str,
    port: int,
    limits: Limits,
    checkpoint: str = "best",
    calibrated: bool = True,
    media: ExtractConfig | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; those that are being answered then are finished.

    Args:
        run, checkpoint, calibrated, media: see `load_run`.
        host, port: where to listen; port 0 is any free one.
        limits: see there.

    Raises:
        UserError: the run or the address cannot be used.
    """
    with listen(host, port) as listener, uploads_folder() as uploads:
        if not (own := is_loopback(host)):
            complain(
                f"warning: --host {host}: whoever reaches this address can send clips; there is no "
                "password and no encryption (a reverse proxy in front can give both)"
            )
        setup = Setup(run, checkpoint, calibrated, media or ExtractConfig(), uploads, limits.memory)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve(listener, setup, limits, own))
        say("stopped")


async def _serve(listener: socket, setup: Setup, limits: Limits, own: bool) -> None:
    say(f"{setup.run}: starting")
    async with open_pool(setup, limits.workers, limits.queue, limits.seconds) as pool:
        about = pool.about
        for line in about["trust"]:
            say(line)
        if reason := about["no_raw_clips"]:
            say(f"Feature files alone can be predicted: {reason}")
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what clients do wrong
        config = uvicorn.Config(
            Linger(Guard(make_app(pool, limits), own)),
            http="h11",
            lifespan="off",
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=round(limits.seconds + LINGER),
            server_header=False,
        )
        say(f"{url_of(listener)}: POST clips to /predict; /docs tells how; Ctrl-C ends it")
        await uvicorn.Server(config).serve([listener])


def make_app(pool: Pool, limits: Limits) -> ASGIApp:
    """The endpoint of a pool."""

    async def predict(request: Request) -> Response:
        with pool.place() as free:
            if not free:
                wait = {"Retry-After": str(pool.wait_seconds)}
                raise HTTPException(503, "all places are taken; try again later", wait)
            with tempfile.TemporaryDirectory(dir=pool.setup.uploads) as folder:
                try:
                    async with asyncio.timeout(limits.seconds):
                        path, name = await save(request, Path(folder), limits.bytes)
                    answer = await _unless_gone(request, pool.predict(path, name))
                except TimeoutError as error:
                    raise HTTPException(
                        408, f"the upload took over {limits.seconds:g} s"
                    ) from error
                except ClientDisconnect:
                    return Response(status_code=400)  # which nobody reads
                except asyncio.CancelledError as error:
                    raise HTTPException(503, "the server ends", {"Retry-After": "60"}) from error
        return Response(answer.body, answer.status, media_type="application/json")

    async def health(request: Request) -> Response:
        state = {
            "status": "ok" if pool.up else "starting",
            **{"run": pool.about["run"], "workers": pool.up, "busy": pool.busy},
            **{"places": pool.places, "taken": pool.taken},
        }
        return JSONResponse(state, 200 if pool.up else 503)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(pool.about, limits.size, limits.seconds))

    async def page(request: Request) -> Response:
        text = files("mmattn.server").joinpath("docs.html").read_text(encoding="utf-8")
        style = files("mmattn.report").joinpath("page.css").read_text(encoding="utf-8")
        text = text.replace("/* page.css of the reports stands here */", style)
        return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_MAY})

    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": f"the server failed: {error!r:.200}"}, 500)

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/health", health),
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/", page),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: refuse, Exception: fail})


async def save(request: Request, folder: Path, most: int) -> tuple[Path, str]:
    """Write the clip in a request to a folder; its path there, and its name for the client.

    The clip is the one file of a form, or else the body, whose name the query may tell.

    Raises:
        HTTPException: it has more bytes than `most`, or is a form without one file.
        ClientDisconnect: the client went away.
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


async def _unless_gone(request: Request, work: Awaitable[Answer]) -> Answer:
    """What the work gives; it is cancelled, with ClientDisconnect, when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    both = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if both[0].done():
            return both[0].result()
        raise ClientDisconnect
    finally:
        for task in both:
            task.cancel()


class Linger:
    """ASGI middleware: a client that is still sending when it is answered may go on for a while.

    What it sends is not kept. If the connection were closed at once, most clients would fail
    before they read the answer.
    """

    def __init__(self, app: ASGIApp, seconds: float = LINGER):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request."""
        headers = Headers(scope=scope)
        sending = "content-length" in headers or "transfer-encoding" in headers

        async def note_end() -> Message:
            nonlocal sending
            message = await receive()
            sending = message.get("more_body", False)
            return message

        async def send_then_wait(message: Message) -> None:
            if not sending or message.get("more_body") or message["type"] != "http.response.body":
                return await send(message)
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    while sending:
                        await note_end()
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, note_end, send_then_wait)


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """A folder for what clients send, removed at the end; so are those of servers that were killed.

    A server has a lock on a file in its folder as long as it lives.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*/lock"):
        with suppress(OSError), lock.open() as file:  # an error: another process has the lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UPLOADS) as folder:
        new = Path(folder) / "new"
        with new.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(new.with_name("lock"))
            yield Path(folder)
