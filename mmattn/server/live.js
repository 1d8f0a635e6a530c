// Sends camera and microphone to `mmattn live` and shows its answers; session.py has the messages.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const about = JSON.parse(byId("data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, given) => Object.assign(document.createElement(tag), given);
  const RATE = 16000; // Hz
  const PIECE = 160; // samples of a line of the waveform: 10 ms
  const SIDE = 640; // pixels of the longer side of a frame that is sent, at most
  const OUTSTANDING = 2; // frames without an answer: with more, answers would be ever later
  const UNSENT = 2 ** 20; // bytes that wait in the socket at most: 30 s of audio
  const DRIFT = 10000; // ms in which two clocks do not drift apart
  const [FRAME, AUDIO] = [1, 2];
  const [TAKEN, BAD] = [4001, 1007]; // codes with which the server closes
  const NAMES = { audio: "microphone", video: "camera" };
  const COLOURS = { audio: "#0072b2", video: "#d55e00" };
  const WANTED = {
    audio: {
      channelCount: 1,
      echoCancellation: false,
      noiseSuppression: false,
      autoGainControl: false,
    },
    video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
  };
  const WHY = {
    NotAllowedError: "the browser was not allowed to use it; allow it beside the page's address",
    NotFoundError: "there is none",
    NotReadableError: "another program uses it",
  };
  const video = byId("video");

  let running = false; // whether the user wants it to
  let media = null; // tracks, their kinds, the audio context
  let socket = null;
  let tries = 0; // to connect
  let outstanding = 0; // frames
  let encoding = false;
  let frameDue = 0; // ms
  let wave = []; // [ms, amplitude]
  let shown = null; // the answer for the last window
  let fresh = false; // whether it has not been drawn
  let drawing = false; // whether it will be
  let delays = []; // ms, of the last windows

  // A message of each kind, until another takes its place; "" for none.
  function notice(kind, text = "", button = "", press = null) {
    byId(`notice-${kind}`)?.remove();
    if (text) {
      const line = make("p", { id: `notice-${kind}`, className: "note", textContent: `${text} ` });
      if (button) {
        line.append(make("button", { textContent: button, onclick: press }));
      }
      byId("notices").append(line);
    }
  }

  function state(text) {
    byId("state").textContent = text;
    byId("start").disabled = running;
    byId("stop").disabled = !running;
  }

  // ---- start and stop

  async function start() {
    running = true;
    sessionStorage.setItem("running", "yes"); // a page that is loaded again continues
    ["media", "audio", "connection", "late", "saved"].forEach((kind) => notice(kind));
    state("Waiting for camera and microphone …");
    await openMedia();
    if (running && media.kinds.length) {
      connect();
    } else {
      end();
    }
  }

  function end() {
    running = false;
    sessionStorage.removeItem("running");
    socket = null; // it may still tell what was recorded
    media?.tracks.forEach((track) => track.stop());
    media?.context?.close();
    video.srcObject = null;
    drawMesh([1, 1], []);
    state("Stopped");
  }

  // What is recorded is written before the server closes.
  function stop() {
    if (socket?.readyState === WebSocket.OPEN) {
      socket.send("end");
    } else {
      socket?.close();
    }
    end();
  }

  function restart() {
    stop();
    start();
  }

  // ---- camera and microphone

  async function openMedia() {
    const lacking = {};
    const ask = async (kinds) => {
      const wanted = Object.fromEntries(kinds.map((kind) => [kind, WANTED[kind]]));
      return (await navigator.mediaDevices.getUserMedia(wanted)).getTracks();
    };
    const denied = async (kind) =>
      (await navigator.permissions.query({ name: NAMES[kind] }).catch(() => null))?.state !==
      "granted";
    let tracks = [];
    try {
      tracks = await ask(about.kinds); // one question to the user
    } catch (error) {
      for (const kind of about.kinds) {
        try {
          const again = about.kinds.length > 1; // each alone, unless the user said no
          if (!again || (error.name === "NotAllowedError" && (await denied(kind)))) {
            throw error;
          }
          tracks.push(...(await ask([kind])));
        } catch (own) {
          lacking[kind] = `No ${NAMES[kind]}: ${WHY[own.name] ?? own.message}.`;
        }
      }
    }
    const kinds = tracks.map((track) => track.kind).sort();
    media = { tracks, kinds, context: null };
    if (Object.keys(lacking).length) {
      const alone = kinds.map((kind) => `Predictions are from ${kind} alone.`);
      notice("media", [...Object.values(lacking), ...alone].join(" "), "Try again", restart);
    }
    byId("camera").closest("figure").hidden = !kinds.includes("video");
    for (const track of tracks) {
      track.onended = () =>
        notice("media", `The ${NAMES[track.kind]} has gone.`, "Try again", restart);
      await { audio: openAudio, video: openVideo }[track.kind](new MediaStream([track]), track);
    }
  }

  async function openAudio(stream, track) {
    const context = (media.context = new AudioContext({ sampleRate: RATE }));
    await context.audioWorklet.addModule(`worklet.js${location.search}`);
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      notice("audio", "This browser does not give audio at 16 kHz, as Chromium and Safari do.");
      media.kinds = media.kinds.filter((kind) => kind !== "audio");
      return;
    }
    const blocks = new AudioWorkletNode(context, "blocks", { numberOfOutputs: 0 });
    const clock = audioClock();
    const latency = 1000 * (track.getSettings().latency ?? 0);
    blocks.port.onmessage = ({ data: { first, samples } }) => {
      const lasts = (1000 * samples.length) / RATE;
      const time = clock((1000 * first) / RATE + lasts) - lasts - latency;
      wave = wave.filter(([at]) => at > time - 1000 * about.window - 1000);
      for (let place = 0; place < samples.length; place += PIECE) {
        const peak = Math.max(...samples.subarray(place, place + PIECE).map(Math.abs)) / 32768;
        wave.push([time + (1000 * place) / RATE, peak]);
      }
      draw();
      send(AUDIO, time, samples.buffer);
    };
    source.connect(blocks);
    context.resume(); // is refused, and waits for the button, where the user has not clicked yet
    if (context.state !== "running") {
      const why = "The browser waits for a click before it lets the microphone run.";
      notice("audio", why, "Run", () => context.resume());
      context.onstatechange = () => notice("audio");
    }
  }

  // The page's time, that of video frames, for a time of the audio's own clock; both in ms. No
  // block arrives before its time, so the least late one tells how far the clocks are apart.
  function audioClock() {
    let [least, before, since] = [Infinity, Infinity, -Infinity];
    return (own) => {
      const now = performance.now();
      if (now - since > DRIFT) {
        [least, before, since] = [Infinity, least, now];
      }
      least = Math.min(least, now - own);
      return own + Math.min(least, before);
    };
  }

  async function openVideo(stream, track) {
    video.srcObject = stream;
    await video.play();
    const { width, height } = track.getSettings();
    byId("camera").style.aspectRatio = `${width} / ${height}`;
    const canvas = make("canvas");
    const period = 1000 / about.rate;
    const next = (now, { captureTime, presentationTime }) => {
      if (video.srcObject !== stream) {
        return;
      }
      video.requestVideoFrameCallback(next);
      const time = captureTime ?? presentationTime;
      if (time < frameDue - period / 4) {
        return; // the features have fewer frames
      }
      frameDue = Math.max(frameDue + period, time + period / 2);
      if (!encoding && outstanding < OUTSTANDING) {
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
    const encoded = async (blob) => {
      const jpeg = await blob.arrayBuffer();
      encoding = false;
      outstanding += send(FRAME, time, jpeg);
    };
    canvas.toBlob(encoded, "image/jpeg", 0.85);
  }

  // ---- connection

  // Whether it could be sent.
  function send(kind, time, content) {
    if (socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > UNSENT) {
      return false;
    }
    const message = new Uint8Array(16 + content.byteLength);
    const header = new DataView(message.buffer);
    header.setUint8(0, kind);
    header.setFloat64(8, time, true);
    message.set(new Uint8Array(content), 16);
    socket.send(message);
    return true;
  }

  function connect() {
    const own = new WebSocket(
      `ws://${location.host}/stream${location.search}&kinds=${media.kinds.join(",")}`,
    );
    socket = own;
    socket.onopen = () => {
      [tries, outstanding, delays] = [0, 0, []];
      notice("connection");
      state("Running; the first prediction is on its way");
    };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      HANDLERS[message.type](message);
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== own) {
        return; // it was to end
      }
      if (code === TAKEN || code === BAD) {
        end();
        const why = reason || "Another tab or window has taken over.";
        notice("connection", why, "Use this one", start);
        return;
      }
      tries += 1;
      state("Connection lost; trying again …");
      setTimeout(() => reconnect(own), Math.min(5000, 250 * 2 ** tries));
    };
  }

  async function reconnect(lost) {
    let answer = null;
    try {
      answer = await fetch(location, { cache: "no-store" });
    } catch {
      notice("connection", "mmattn live does not answer. Was it ended?");
    }
    if (socket !== lost) {
      return; // it was stopped meanwhile
    }
    if (answer?.status === 403) {
      end();
      notice("connection", "mmattn live was started again: open the address that it printed.");
    } else {
      connect();
    }
  }

  const HANDLERS = {
    frame({ size, mesh }) {
      outstanding -= 1;
      drawMesh(size, mesh);
    },
    window(answer) {
      [shown, fresh] = [answer, true];
      draw();
    },
    saved: ({ paths }) => notice("saved", `Recorded: ${paths.join(", ")}`),
    unsaved: ({ reason }) => notice("saved", `Not recorded: ${reason}`),
  };

  function painted(answer) {
    const delay = performance.now() - answer.end;
    delays = [...delays.slice(-99), delay];
    const p95 = [...delays].sort((a, b) => a - b)[Math.ceil(0.95 * delays.length) - 1];
    const late = answer.left_out ? `; ${answer.left_out} windows left out` : "";
    const ms = `${Math.round(delay)} ms from capture to screen, 95\u00a0% within ${Math.round(p95)} ms`;
    if (running) {
      state(`Running; ${ms}${late}`);
    }
    const behind = "This computer is slower than windows come: the oldest are left out.";
    notice("late", answer.behind ? behind : "");
    document.dispatchEvent(new CustomEvent("shown", { detail: { ...answer, delay } }));
  }

  // ---- what is shown

  // Once a frame of the screen; none of a hidden tab.
  function draw() {
    if (drawing) {
      return;
    }
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      drawTime();
      if (fresh) {
        fresh = false;
        drawPrediction();
        const answer = shown;
        setTimeout(() => painted(answer)); // after the frame with it was painted
      }
    });
  }

  function drawPrediction() {
    const { predicted, probabilities, notes, streams } = shown;
    byId("predicted").textContent = predicted ?? "–";
    const from = predicted ? `from ${Object.keys(streams).join(" and ")}` : "no prediction";
    byId("notes").textContent = [from, ...notes].join("; ");
    about.classes.forEach((_, place) => {
      const row = byId("classes").children[place];
      row.querySelector("i").style.width = `${100 * (probabilities?.[place] ?? 0)}%`;
      row.lastChild.textContent = probabilities?.[place].toFixed(2) ?? "";
    });
  }

  function drawMesh(size, points) {
    const canvas = byId("mesh");
    [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d");
    context.fillStyle = "#56f0ff";
    for (let at = 0; at < points.length; at += 2) {
      context.fillRect(points[at] - 1, points[at + 1] - 1, 2, 2);
    }
  }

  // Waveform and attention over the same last seconds.
  function drawTime() {
    const [canvas, scale, row, gap] = [byId("time"), devicePixelRatio, 64, 10];
    const names = [...(about.kinds.includes("audio") ? ["waveform"] : []), ...about.modalities];
    const [width, height] = [canvas.clientWidth, names.length * (row + gap) + 14];
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = `13px ${getComputedStyle(document.body).fontFamily}`;
    const now = performance.now();
    const perMs = width / (1000 * about.window + 500);
    const x = (time) => width - (now - time) * perMs;
    names.forEach((name, place) => {
      const top = place * (row + gap);
      const colour = COLOURS[name.split("_")[0]] ?? COLOURS.audio;
      context.fillStyle = css("--panel");
      context.fillRect(0, top, width, row);
      context.fillStyle = context.strokeStyle = colour;
      context.lineWidth = 2;
      let title = name;
      if (name === "waveform") {
        for (const [time, amplitude] of wave) {
          const half = Math.max(0.5, (Math.sqrt(amplitude) * row) / 2);
          context.fillRect(x(time), top + row / 2 - half, 8 * perMs, 2 * half);
        }
      } else {
        const { times, ratio } = shown?.streams?.[name] ?? { times: [], ratio: [] };
        const most = Math.max(2, ...ratio);
        const y = (share) => top + row - (share / most) * (row - 20);
        const points = times.map((at, n) => (ratio[n] === null ? null : [x(at), y(ratio[n])]));
        drawArea(context, points, top + row);
        title = `attention to ${name.replaceAll("_", " ")}, to ${most.toFixed(1)} × uniform`;
      }
      context.fillStyle = css("--text");
      context.fillText(title, 6, top + 15);
    });
    context.fillStyle = css("--quiet");
    context.textAlign = "right";
    for (let second = 0; second <= about.window; second += 1) {
      context.fillText(second ? `−${second} s` : "now", x(now - 1000 * second), height - 4);
    }
  }

  // A line and what is below it; null, a frame without data, divides it.
  function drawArea(context, points, bottom) {
    for (let first = 0; first < points.length; first += 1) {
      let after = first;
      while (points[after]) {
        after += 1;
      }
      const piece = points.slice(first, after);
      if (piece.length > 1) {
        context.beginPath();
        piece.forEach(([x, y]) => context.lineTo(x, y));
        context.stroke();
        context.lineTo(piece.at(-1)[0], bottom);
        context.lineTo(piece[0][0], bottom);
        context.globalAlpha = 0.25;
        context.fill();
        context.globalAlpha = 1;
      }
      first = after;
    }
  }

  document.title = byId("title").textContent = `Live: ${about.run}`;
  byId("about").textContent = [
    `A prediction every ${about.hop} s, from the last ${about.window} s.`,
    ...about.trust,
  ].join(" ");
  if (about.record) {
    notice("record", `Features and predictions are recorded, to ${about.record}.`);
  }
  for (const name of about.classes) {
    const row = make("li", {});
    const bar = make("span", { className: "bar" });
    bar.append(make("i", {}));
    row.append(make("span", { textContent: name }), bar, make("span", {}));
    byId("classes").append(row);
  }
  byId("start").onclick = start;
  byId("stop").onclick = stop;
  addEventListener("resize", draw);
  state("");
  drawTime();
  if (sessionStorage.getItem("running")) {
    start();
  }
})();
