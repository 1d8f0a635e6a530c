"""`mmattn live`: a page on this computer that shows what a run predicts of camera and microphone.

The page sends what it sees and hears over a WebSocket, see `mmattn.server.session`, and is answered
in JSON. Each frame is answered when it has been looked at, and while two are not the page sends
none: a slow computer sees fewer frames, not ever later ones. The text "end" ends a session.
"""

import asyncio
import json
import secrets
import threading
import webbrowser
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mmattn.config import ExtractConfig, kind_of
from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.run.run import Run, load_run
from mmattn.server.access import Guard, listen, url_of
from mmattn.server.session import BadMessage, Session, warm_up
from mmattn.train.checkpoints import Kind
from mmattn.train.devices import start_devices

TAKEN, BAD, ENDED = 4001, 1007, 1000  # close codes: by another page; for a bad message; as asked
LARGEST = 2**22  # bytes of a message
SAVING = 30  # seconds that what was recorded may take to be written when the command is ended
FILES = {
    "live.js": ("mmattn.server", "text/javascript"),
    "worklet.js": ("mmattn.server", "text/javascript"),
    "live.css": ("mmattn.server", "text/css"),
    "page.css": ("mmattn.report", "text/css"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "X-Content-Type-Options": "nosniff",
}


class Live:
    """The page of a run and what answers it: for one tab at a time, the newest.

    A tab that crashed or lost its connection may still look alive, so that a new one takes over.

    Args:
        run: that predicts.
        window: seconds of a prediction.
        hop: seconds from one to the next.
        record: folder to which sessions are written, if they are to be.

    Raises:
        UserError: what the run's features need is missing.
    """

    def __init__(self, run: Run, window: float, hop: float, record: Path | None = None):
        self.run, self.window, self.hop, self.record = run, window, hop, record
        self.config = run.extraction()
        self.kinds = sorted({kind_of(name) for name in run.config.model.modalities})
        self.token = secrets.token_urlsafe(16)
        self._turn, self._reader = asyncio.Lock(), None  # of the tab that is shown
        warm_up(run, self.config, window)

    def app(self) -> Guard:
        """The ASGI application; it asks for the token everywhere."""
        routes = [
            Route("/", self._page),
            Route("/{name}", self._file),
            WebSocketRoute("/stream", self._stream),
        ]
        return Guard(Starlette(routes=routes), token=self.token)

    async def _page(self, request: Request) -> Response:
        about = {
            "run": self.run.name,
            "trust": self.run.trust,
            "classes": self.run.class_names,
            "modalities": self.run.config.model.modalities,
            "kinds": self.kinds,
            "window": self.window,
            "hop": self.hop,
            "rate": self.config.video_rate,
            "record": self.record and str(self.record),
        }
        text = (files("mmattn.server") / "live.html").read_text(encoding="utf-8")
        data = json.dumps(about).replace("<", "\\u003c")  # it could end the script element
        text = text.replace("TOKEN", self.token).replace("DATA", data)
        return Response(text, headers=HEADERS, media_type="text/html")

    async def _file(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in FILES:
            return Response(status_code=404)
        package, kind = FILES[name]
        text = (files(package) / name).read_text(encoding="utf-8")
        return Response(text, headers=HEADERS, media_type=kind)

    async def _stream(self, websocket: WebSocket) -> None:
        """One tab's connection. That of a tab before ends first, and is recorded first."""
        kinds = {*websocket.query_params.get("kinds", "").split(",")}.intersection(self.kinds)
        if not kinds:
            return await websocket.close(BAD)
        await websocket.accept()
        if self._reader:
            self._reader.cancel()
        messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._reader = reader = asyncio.create_task(_read(websocket, messages))
        code, reason = ENDED, ""
        async with self._turn:
            session = Session(
                self.run, self.config, self.window, self.hop, kinds, self.record is not None
            )
            try:
                await _answer(websocket, session, messages)
            except BadMessage as error:
                code, reason = BAD, f"expected a frame or audio, got {error}"
            except WebSocketDisconnect:
                pass
            finally:
                taken = reader.cancelled()
                reader.cancel()
                await self._save(websocket, session)
        with suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
            await websocket.close(TAKEN if taken else code, reason)

    async def _save(self, websocket: WebSocket, session: Session) -> None:
        if self.record is None or not session.has_any:
            return
        answer = {"type": "saved"}
        try:
            answer["paths"] = list(map(str, await asyncio.to_thread(session.save, self.record)))
            say(f"recorded: {', '.join(answer['paths'])}")
        except OSError as error:
            answer = {"type": "unsaved", "reason": f"{self.record}: {error.strerror or error}"}
            say(f"error: {answer['reason']}")
        with suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_json(answer)


async def _read(websocket: WebSocket, messages: "asyncio.Queue[bytes | None]") -> None:
    """Put what a page sends into a queue, and None at the end."""
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect" or message.get("text") == "end":
                return
            messages.put_nowait(message.get("bytes") or b"")
    finally:
        messages.put_nowait(None)


async def _answer(
    websocket: WebSocket, session: Session, messages: "asyncio.Queue[bytes | None]"
) -> None:
    """Answer a page until it ends. All that has come is taken before the next window is predicted:
    the newest then."""
    ended = False
    while not ended:
        taken = [await messages.get()]
        while not messages.empty():
            taken.append(messages.get_nowait())
        ended = None in taken
        answers = await asyncio.to_thread(session.take, [one for one in taken if one is not None])
        for answer in answers:
            await websocket.send_json(answer)
        if answer := await asyncio.to_thread(session.predict):
            await websocket.send_json(answer)


def live_run(
    folder: Path,
    port: int,
    browser: bool = True,
    record: Path | None = None,
    window: float = 3.0,
    hop: float = 0.5,
    kind: Kind = "best",
    calibrated: bool = True,
    media: ExtractConfig | None = None,
) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        folder: see `load_run`.
        port: of 127.0.0.1; 0 is any free one.
        browser: open the page in the user's browser.
        record: folder for a feature file and a table of each session; None stores nothing.
        window: seconds of a prediction.
        hop: seconds from one to the next.
        kind: which checkpoint.
        calibrated: see `load_run`.
        media: where the models for features are.

    Raises:
        UserError: no such run, an option that cannot be, or the port is taken.
    """
    if not 0 < hop <= window <= 30:
        raise UserError(f"--window {window} --hop {hop}: expected 0 < hop <= window <= 30 seconds")
    if record is not None and not record.is_dir():
        raise UserError(f"--record {record}: expected a folder that is there")
    listener = listen("127.0.0.1", port)
    start_devices(1, batch=1)
    run = load_run(folder, kind, media, calibrated)
    for line in run.trust:
        say(line)
    with waiting(f"Loading {folder}"):
        page = Live(run, window, hop, record)
    url = f"{url_of(listener)}/?token={page.token}"
    say(f"Open {url}\nOnly this computer can reach it. Ctrl-C ends it.")
    if browser:  # in a thread of its own, for a browser in the terminal does not return
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    config = uvicorn.Config(
        page.app(),
        ws="websockets-sansio",
        ws_max_size=LARGEST,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SAVING,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
