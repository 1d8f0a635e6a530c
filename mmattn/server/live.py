"""`mmattn live`: a page on this computer with a run's predictions from camera and microphone.

The page sends frames and audio over a WebSocket, see `mmattn.server.session`; answers are JSON.
Each frame is answered once processed, and while two are unanswered the page sends no more: a slow
computer gets fewer frames, not ever later ones. The text "end" ends a session.
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
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mmattn.config import ExtractConfig, kind_of
from mmattn.console import say, waiting
from mmattn.files import check_folder
from mmattn.run.folder import make_folder
from mmattn.run.run import Run, load_run
from mmattn.run.timeline import Sliding
from mmattn.server.access import LOOPBACK, Guard, listen, url_of
from mmattn.server.session import BadMessage, Recording, Session, warm_up
from mmattn.train.checkpoints import Chosen
from mmattn.train.devices import start_devices

TAKEN, BAD, ENDED = 4001, 1007, 1000  # close codes: another page; bad message; as requested
LARGEST = 2**22  # bytes of a message
SAVING = 30  # seconds to write the recording after Ctrl-C
SCRIPTS = ("live.js", "connection.js", "devices.js", "drawing.js", "worklet.js")
FILES = {
    **dict.fromkeys(("live.html", "live.css", *SCRIPTS), "mmattn.server"),
    "page.css": "mmattn.report",
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
    """The page of a run and its server, for one tab at a time: the newest.

    A new tab takes over, because one that crashed or lost its connection may still look alive.

    run: predicts; sliding: the sliding windows; record: folder for recordings, None for none.
    Raises UserError if something that the run's features need is missing.
    """

    def __init__(self, run: Run, sliding: Sliding, record: Path | None = None):
        self.run, self.sliding, self.record = run, sliding, record
        self.kinds = sorted({kind_of(name) for name in run.config.model.modalities})
        self.token = secrets.token_urlsafe(16)
        self._turn = asyncio.Lock()  # held by the active tab
        self._reader: asyncio.Task[None] | None = None
        warm_up(run, sliding.window)

    def app(self) -> Guard:
        """The ASGI application, below the token."""
        routes = [
            Route("/about.js", self._about),
            WebSocketRoute("/stream", self._stream),
            Route("/", self._file),
            Route("/{name}", self._file),
        ]
        return Guard(Starlette(routes=[Mount(f"/{self.token}", routes=routes)]), token=self.token)

    async def _file(self, request: Request) -> Response:
        name = request.path_params.get("name", "live.html")
        if name not in FILES:
            return Response(status_code=404)
        return FileResponse(str(files(FILES[name]) / name), headers=HEADERS)

    async def _about(self, request: Request) -> Response:
        """Facts of the run that the page's scripts import."""
        about = {
            "run": self.run.name,
            "trust": self.run.trust,
            "classes": self.run.class_names,
            "modalities": self.run.config.model.modalities,
            "kinds": self.kinds,
            "window": self.sliding.window,
            "hop": self.sliding.hop,
            "rate": self.run.extraction().video_rate,
            "record": self.record and str(self.record),
        }
        text = f"export default {json.dumps(about)};"
        return Response(text, headers=HEADERS, media_type="text/javascript")

    async def _stream(self, websocket: WebSocket) -> None:
        """One tab's connection. That of an earlier tab ends, and is recorded, first."""
        kinds = {*websocket.query_params.get("kinds", "").split(",")}.intersection(self.kinds)
        if not kinds:
            return await websocket.close(BAD)
        await websocket.accept()
        if self._reader:
            self._reader.cancel()
        messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._reader = reader = asyncio.create_task(_read(websocket, messages))
        code, reason = ENDED, ""
        async with self._turn:
            recording = Recording(self.run) if self.record else None
            session = Session(self.run, self.sliding, kinds, recording)
            try:
                await _answer(websocket, session, messages)
            except BadMessage as error:
                code, reason = BAD, f"expected a frame or audio, got {error}"
            except WebSocketDisconnect:
                pass
            finally:
                taken = reader.cancelled()
                reader.cancel()
                if recording and self.record:
                    await _save(websocket, recording, self.record)
        with suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
            await websocket.close(TAKEN if taken else code, reason)


async def _save(websocket: WebSocket, recording: Recording, folder: Path) -> None:
    try:
        paths = await asyncio.to_thread(recording.save, folder)
        said = f"Recorded: {', '.join(map(str, paths)) or 'nothing, it was too short'}"
    except OSError as error:
        said = f"Not recorded: {folder}: {error.strerror or error}"
    say(said)
    with suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_json({"type": "saved", "said": said})


async def _read(websocket: WebSocket, messages: asyncio.Queue[bytes]) -> None:
    """Put what a page sends into a queue, and b"" at the end; any text means the end."""
    try:
        while content := (await websocket.receive()).get("bytes"):
            messages.put_nowait(content)
    finally:
        messages.put_nowait(b"")


async def _answer(websocket: WebSocket, session: Session, messages: asyncio.Queue[bytes]) -> None:
    """Answer a page until it ends; takes all that has come before it predicts the newest window."""
    ended = False
    while not ended:
        taken = [await messages.get()]
        while not messages.empty():
            taken.append(messages.get_nowait())
        ended = b"" in taken
        for answer in await asyncio.to_thread(session.take, [one for one in taken if one]):
            await websocket.send_json(answer)
        if answer := await asyncio.to_thread(session.predict):
            await websocket.send_json(answer)


def live_run(
    folder: Path,
    port: int,
    browser: bool,
    record: Path | None,
    sliding: Sliding,
    kind: Chosen = "best",
    calibrated: bool = True,
    media: ExtractConfig | None = None,
) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        folder, kind, calibrated, media: see `load_run`.
        port: of 127.0.0.1; 0 is any free one.
        browser: open the page in the user's browser.
        record: folder for a feature file and a table of each session; None stores nothing.
        sliding: the sliding windows.

    Raises:
        UserError: no such run, an invalid option, or the port is taken.
    """
    sliding.check()
    if record is not None:
        check_folder(record := make_folder(record))
    listener = listen(LOOPBACK, port)
    start_devices(1, batch=1)
    run = load_run(folder, kind, media, calibrated)
    for line in run.trust:
        say(line)
    with waiting(f"Loading {folder}"):
        page = Live(run, sliding, record)
    url = f"{url_of(listener)}/{page.token}/"
    say(f"Open {url}\nOnly this computer can reach it. Ctrl-C ends it.")
    if browser:  # in a thread, because a terminal browser does not return
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
    say("stopped")
