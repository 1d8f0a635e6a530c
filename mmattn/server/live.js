// Sends camera and microphone to `mmattn live` and shows what it answers; live.py has the protocol.
"use strict";
(() => {
  const about = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const RATE = 16000; // Hz
  const SIDE = 640; // pixels of the longer side of a frame that is sent, at most
  const OUTSTANDING = 2; // frames without an answer; with more the server would be ever later
  const UNSENT = 2 ** 20; // bytes that wait in the socket: 30 s of audio; the connection hangs
  const PIECE = 160; // samples of a line of the waveform: 10 ms
  const SETTLED = 10000; // ms over which the audio's clock is compared with the page's
  const [FRAME, AUDIO] = [1, 2];
  const [TAKEN, BAD] = [4001, 1007]; // codes with which the server closes
  const COLOURS = { audio: "#0072b2", video: "#d55e00" };
  const colour = (modality) => COLOURS[modality.split("_")[0]];
  const video = byId("video");

  let socket = null;
  let media = null; // tracks and audio context, while they run
  let running = false; // whether the user wants it to
  let tries = 0;
  let sent = 0; // frames
  let answered = 0;
  let encoding = false;
  let frameDue = 0;
  let face = null; // the last answer to a frame
  let shown = null; // the last window
  let wave = []; // [ms, amplitude] of blocks
  let delays = []; // ms, of the last windows

  // A message of each kind, until it is taken back with "".
  function notice(kind, text = "", button = null, press = null) {
    byId(`notice-${kind}`)?.remove();
    if (text) {
      const line = Object.assign(document.createElement("p"), { className: "note", textContent: text });
      line.id = `notice-${kind}`;
      if (button) {
        line.append(" ", Object.assign(document.createElement("button"), { textContent: button, onclick: press }));
      }
      byId("notices").append(line);
    }
  }

  function state(text) {
    byId("state").textContent = text;
    byId("start").disabled = running;
    byId("stop").disabled = !running;
  }

  // ---- camera and microphone

  const WHY = {
    NotAllowedError: "the browser was not allowed to use it: allow it beside the address of this page",
    NotFoundError: "there is none",
    NotReadableError: "another program uses it",
  };
  const WANTED = {
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 },
    video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
  };
  const NAMES = { audio: "microphone", video: "camera" };

  // Both in one question to the user; if that fails, each that can be had alone.
  async function openDevices() {
    const kinds = Object.keys(WANTED).filter((kind) => about.kinds.includes(kind));
    const ask = (some) => navigator.mediaDevices.getUserMedia(Object.fromEntries(some.map((kind) => [kind, WANTED[kind]])));
    try {
      return { tracks: (await ask(kinds)).getTracks(), lacking: [] };
    } catch (error) {
      const found = { tracks: [], lacking: [] };
      for (const kind of kinds) {
        try {
          // One that was denied is not asked for again.
          const allowed = kinds.length > 1 && (error.name !== "NotAllowedError" || (await granted(kind)));
          found.tracks.push(...(allowed ? await ask([kind]) : await Promise.reject(error)).getTracks());
        } catch (own) {
          found.lacking.push(`No ${NAMES[kind]}: ${WHY[own.name] ?? own.message}.`);
        }
      }
      return found;
    }
  }

  async function granted(kind) {
    try {
      return (await navigator.permissions.query({ name: NAMES[kind] })).state === "granted";
    } catch {
      return false; // a browser that does not tell
    }
  }

  async function openMedia() {
    const { tracks, lacking } = await openDevices();
    const kinds = tracks.map((track) => track.kind);
    const alone = kinds.length ? `Predicted from ${kinds.join(" and ")} alone.` : "";
    notice("media", lacking.concat(lacking.length ? alone : []).join(" "), "Try again", restart);
    media = { tracks, kinds, context: null };
    for (const track of tracks) {
      track.onended = () => notice("media", `The ${NAMES[track.kind]} has ended.`, "Try again", restart);
      await { audio: openAudio, video: openVideo }[track.kind](new MediaStream([track]), track);
    }
    if (!kinds.includes("video")) {
      byId("camera-about").textContent = about.kinds.includes("video") ? "No camera." : "This run predicts from audio alone: the camera is not used.";
    }
    return kinds.length > 0;
  }

  function closeMedia() {
    media?.tracks.forEach((track) => track.stop());
    media?.context?.close();
    media = video.srcObject = face = null;
    byId("mesh").getContext("2d").clearRect(0, 0, byId("mesh").width, byId("mesh").height);
  }

  async function openAudio(stream, track) {
    const context = (media.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" }));
    await context.audioWorklet.addModule(`worklet.js${location.search}`);
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      notice("audio", "This browser does not resample the microphone to 16 kHz (Firefox): use Chromium, Chrome, Edge or Safari.");
      return;
    }
    const blocks = new AudioWorkletNode(context, "blocks", { numberOfOutputs: 0 });
    const latency = 1000 * (track.getSettings().latency ?? 0);
    const clock = audioClock();
    blocks.port.onmessage = ({ data: { first, samples } }) => {
      const end = (1000 * (first + samples.length)) / RATE;
      const time = clock(end, performance.now()) - (1000 * samples.length) / RATE - latency;
      wave = wave.filter(([at]) => at > time - 1000 * about.window - 1000);
      for (let place = 0; place < samples.length; place += PIECE) {
        const piece = samples.subarray(place, place + PIECE);
        wave.push([time + (1000 * place) / RATE, Math.max(...piece.map(Math.abs)) / 32768]);
      }
      draw();
      if (connected() && socket.bufferedAmount < UNSENT) {
        send(AUDIO, time, samples.buffer);
      }
    };
    source.connect(blocks);
    await Promise.race([context.resume(), new Promise((done) => setTimeout(done, 500))]);
    if (context.state !== "running") {
      notice("audio", "The browser waits for a click before it lets the microphone run.", "Run", () => {
        context.resume();
        notice("audio");
      });
    }
  }

  // The page's time (ms), on which video frames are dated, of a time of the audio's own clock (ms).
  // A block never arrives early and the least late one tells the difference of the clocks: the
  // smallest of the last seconds, for the clocks drift apart.
  function audioClock() {
    let least = Infinity;
    let before = Infinity;
    let since = -Infinity;
    return (own, now) => {
      if (now - since > SETTLED) {
        [before, least, since] = [least, Infinity, now];
      }
      least = Math.min(least, now - own);
      return own + Math.min(least, before);
    };
  }

  async function openVideo(stream) {
    video.srcObject = stream;
    await video.play();
    const { width, height, frameRate } = stream.getVideoTracks()[0].getSettings();
    byId("camera").style.aspectRatio = `${width} / ${height}`;
    byId("camera-about").textContent = `Camera: ${width} × ${height}, ${Math.round(frameRate)} fps.`;
    const canvas = document.createElement("canvas");
    const next = (now, { captureTime, presentationTime }) => {
      if (video.srcObject !== stream) {
        return;
      }
      video.requestVideoFrameCallback(next);
      const time = captureTime ?? presentationTime ?? now;
      const period = 1000 / about.rate;
      if (time < frameDue - period / 4) {
        return; // more frames than the features have
      }
      frameDue = Math.max(frameDue + period, time + period / 2);
      if (connected() && !encoding && sent - answered < OUTSTANDING) {
        sendFrame(canvas, time);
      }
    };
    video.requestVideoFrameCallback(next);
  }

  function sendFrame(canvas, time) {
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(scale * video.videoWidth);
    canvas.height = Math.round(scale * video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    encoding = true; // one after the other, so that they are sent in their order
    canvas.toBlob(
      async (blob) => {
        const jpeg = await blob.arrayBuffer();
        encoding = false;
        if (connected()) {
          sent += 1;
          send(FRAME, time, jpeg);
        }
      },
      "image/jpeg",
      0.85,
    );
  }

  // ---- connection

  const connected = () => socket?.readyState === WebSocket.OPEN;

  function send(kind, time, content) {
    const message = new Uint8Array(16 + content.byteLength);
    const header = new DataView(message.buffer);
    header.setUint8(0, kind);
    header.setFloat64(8, time, true);
    message.set(new Uint8Array(content), 16);
    socket.send(message);
  }

  function connect() {
    state(tries ? "Connection lost; trying again …" : "Connecting …");
    const query = new URLSearchParams({ token: new URLSearchParams(location.search).get("token"), kinds: media.kinds });
    socket = new WebSocket(`ws://${location.host}/stream?${query}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      tries = sent = answered = 0;
      delays = [];
      notice("connection");
      state("Running");
    };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      HANDLERS[message.type](message);
    };
    socket.onclose = ({ code, reason, target }) => {
      if (target !== socket || !running) {
        return;
      }
      if (code === TAKEN || code === BAD) {
        end("Stopped");
        notice("connection", reason || "Another tab or window has taken over.", "Use this one", start);
        return;
      }
      tries += 1;
      state("Connection lost; trying again …");
      setTimeout(reconnect, Math.min(5000, 250 * 2 ** tries));
    };
  }

  // Whether mmattn ended, or was started again and has another token by now.
  async function reconnect() {
    if (!running) {
      return;
    }
    try {
      if (!(await fetch(location, { cache: "no-store" })).ok) {
        end("Stopped");
        notice("connection", "mmattn live was started again: open the address that it prints.");
        return;
      }
    } catch {
      notice("connection", "No connection to mmattn live. Was it ended?");
    }
    if (running) {
      connect();
    }
  }

  const HANDLERS = {
    frame(message) {
      answered += 1;
      face = message;
      drawMesh();
    },
    window(message) {
      requestAnimationFrame(() => {
        shown = message;
        drawWindow();
        drawTime();
        setTimeout(() => painted(message)); // after the frame with it was painted
      });
    },
    saved({ paths }) {
      notice("saved", `Recorded: ${paths.join(", ")}`);
    },
    unsaved({ reason }) {
      notice("saved", `Not recorded: ${reason}.`);
    },
  };

  function painted(message) {
    const delay = performance.now() - message.end;
    delays = [...delays.slice(-99), delay];
    const sorted = [...delays].sort((a, b) => a - b);
    const p95 = sorted[Math.ceil(0.95 * sorted.length) - 1];
    const late = message.left_out ? `; ${message.left_out} windows left out` : "";
    state(`Running; ${Math.round(delay)} ms from capture to screen, 95 % within ${Math.round(p95)} ms${late}`);
    notice("late", message.behind ? "This computer is slower than the windows come: the oldest are left out." : "");
    document.dispatchEvent(new CustomEvent("shown", { detail: { ...message, delay } }));
  }

  // ---- what is shown

  function drawWindow() {
    const { predicted, probabilities, notes, start, end, streams } = shown;
    byId("classes").classList.toggle("gap", !predicted);
    byId("predicted").textContent = predicted ?? "–";
    const seconds = ((end - start) / 1000).toFixed(1);
    const from = Object.keys(streams ?? {}).join(" and ");
    byId("window-about").textContent = `${(predicted ? [`From the last ${seconds} s of ${from}`, ...notes] : ["No prediction", ...notes]).join("; ")}.`;
    about.classes.forEach((name, place) => {
      const share = probabilities?.[place] ?? 0;
      const row = byId("classes").children[place];
      row.querySelector("i").style.width = `${100 * share}%`;
      row.lastChild.textContent = predicted ? share.toFixed(2) : "";
    });
  }

  function drawMesh() {
    const canvas = byId("mesh");
    const context = canvas.getContext("2d");
    [canvas.width, canvas.height] = face.size;
    context.fillStyle = "#56f0ff";
    for (let at = 0; at < face.mesh.length; at += 2) {
      context.fillRect(face.mesh[at] - 1, face.mesh[at + 1] - 1, 2, 2);
    }
  }

  let due = false;
  function draw() {
    if (!due) {
      due = true;
      requestAnimationFrame(() => {
        due = false;
        drawTime();
      });
    }
  }

  // Waveform and attention over the same seconds, up to now.
  function drawTime() {
    const canvas = byId("time");
    const [left, right, row, gap] = [0, 0, 64, 10];
    const names = about.modalities;
    const hears = about.kinds.includes("audio");
    const height = (names.length + (hears ? 1 : 0)) * (row + gap) + 22;
    const width = canvas.clientWidth;
    const scale = devicePixelRatio;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `13px ${getComputedStyle(document.body).fontFamily}`;
    const now = performance.now();
    const span = 1000 * about.window + 500;
    const x = (time) => width - right - ((now - time) / span) * (width - left - right);
    let top = 0;
    const panel = () => {
      context.fillStyle = css("--panel");
      context.fillRect(left, top, width - left - right, row);
    };
    const caption = (text) => {
      context.fillStyle = css("--text");
      context.fillText(text, left + 6, top + 15);
    };
    context.save();
    if (hears) {
      panel();
      context.fillStyle = colour("audio");
      const piece = ((1000 * PIECE) / RATE / span) * (width - left - right);
      for (const [time, peak] of wave) {
        const half = Math.max(0.5, (Math.sqrt(peak) * row) / 2);
        if (x(time) > left) {
          context.fillRect(x(time), top + row / 2 - half, Math.max(1, piece - 0.5), 2 * half);
        }
      }
      caption("waveform");
      top += row + gap;
    }
    for (const name of names) {
      const stream = shown?.streams?.[name];
      const most = Math.max(2, ...(stream?.ratio ?? []));
      panel();
      const y = (ratio) => top + row - (ratio / most) * (row - 22);
      context.strokeStyle = css("--line");
      context.beginPath();
      context.moveTo(left, y(1));
      context.lineTo(width - right, y(1));
      context.stroke();
      drawAttention(context, stream, name, x, y, top + row, left);
      caption(`attention to ${name.replaceAll("_", " ")}: ${most.toFixed(1)} × uniform at the top`);
      top += row + gap;
    }
    context.restore();
    context.fillStyle = css("--quiet");
    for (let second = 0; second <= about.window; second += 1) {
      const label = second ? `−${second} s` : "now";
      const place = x(now - 1000 * second);
      context.textAlign = second ? "center" : "right";
      context.fillText(label, place, top + 8);
    }
    context.textAlign = "left";
  }

  function drawAttention(context, stream, name, x, y, bottom, left) {
    context.strokeStyle = colour(name);
    context.fillStyle = `${colour(name)}33`;
    context.lineWidth = 1.8;
    let piece = []; // frames without data divide it
    const close = () => {
      if (piece.length > 1) {
        context.beginPath();
        piece.forEach(([at, ratio]) => context.lineTo(x(at), y(ratio)));
        context.stroke();
        context.lineTo(x(piece.at(-1)[0]), bottom);
        context.lineTo(x(piece[0][0]), bottom);
        context.fill();
      }
      piece = [];
    };
    stream?.times.forEach((time, place) => {
      if (stream.ratio[place] === null || x(time) < left) {
        close();
      } else {
        piece.push([time, stream.ratio[place]]);
      }
    });
    close();
    context.lineWidth = 1;
  }

  // ---- start and stop

  async function start() {
    if (running) {
      return;
    }
    running = true;
    sessionStorage.setItem("running", "yes"); // a page that is loaded again continues
    ["connection", "late", "saved", "audio"].forEach((kind) => notice(kind));
    state("Waiting for camera and microphone …");
    if (await openMedia()) {
      connect();
    } else {
      end("Stopped");
    }
  }

  // What is recorded is written before the server answers and closes.
  function stop() {
    if (connected()) {
      socket.send("end");
    }
    end("Stopped");
  }

  function end(text) {
    running = false;
    sessionStorage.removeItem("running");
    closeMedia();
    state(text);
  }

  function restart() {
    end("");
    socket?.close();
    notice("media");
    start();
  }

  byId("title").textContent = `Live: ${about.run}`;
  byId("about").textContent = about.trust.join(" ");
  document.title = `mmattn live: ${about.run}`;
  byId("camera").closest("figure").hidden = !about.kinds.includes("video");
  if (about.record) {
    notice("record", `What you show and say is recorded as features and predictions, to ${about.record}.`);
  }
  for (const name of about.classes) {
    const row = document.createElement("li");
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    bar.append(document.createElement("i"));
    row.append(Object.assign(document.createElement("span"), { textContent: name }), bar, document.createElement("span"));
    byId("classes").append(row);
  }
  byId("time-about").textContent = `A prediction every ${about.hop} s, from the last ${about.window} s.`;
  byId("start").onclick = start;
  byId("stop").onclick = stop;
  addEventListener("resize", draw);
  state("");
  drawTime();
  if (sessionStorage.getItem("running")) {
    start();
  }
})();
