// Starts and ends a session of `mmattn live`, and shows its status.
import about from "./about.js";
import { AUDIO, Connection, FRAME } from "./connection.js";
import { NAMES, hear, openDevices, see } from "./devices.js";
import { addWave, byId, drawMesh, redraw, showWindow } from "./drawing.js";

let tracks = [];
let context = null; // of the audio
let connection = null; // while it runs

// Shows a message of a kind, in place of the one before; "" removes it.
function notice(kind, text = "", button = "", press = null) {
  byId(`notice-${kind}`)?.remove();
  if (!text) return;
  const line = document.createElement("p");
  Object.assign(line, { id: `notice-${kind}`, className: "note", textContent: `${text} ` });
  byId("notices").append(line);
  if (!button) return;
  const pressed = { textContent: button, onclick: press };
  line.append(Object.assign(document.createElement("button"), pressed));
}

function state(text) {
  byId("state").textContent = text;
}

const OPEN = {
  async audio(track) {
    context = await hear(track, (time, samples) => {
      addWave(time, samples);
      connection?.send(AUDIO, time, samples.buffer);
    });
    if (context.state === "running") return;
    const why = "The browser needs a click before it starts the microphone.";
    notice("audio", why, "Run", () => context.resume());
    context.onstatechange = () => notice("audio");
  },
  async video(track) {
    byId("camera").hidden = false;
    const isFree = () => connection?.takeFrame();
    await see(track, byId("video"), isFree, (time, jpeg) => connection?.send(FRAME, time, jpeg));
  },
};

async function start() {
  byId("start").disabled = true;
  sessionStorage.setItem("running", "yes"); // a reloaded page continues
  ["media", "audio", "connection", "saved"].forEach((kind) => notice(kind));
  state("Waiting for camera and microphone …");
  const opened = await openDevices();
  const [kinds, lacking] = [[], opened.lacking];
  for (const track of (tracks = opened.tracks)) {
    track.onended = () =>
      notice("media", `The ${NAMES[track.kind]} was disconnected.`, "Try again", restart);
    try {
      await OPEN[track.kind](track);
      kinds.push(track.kind);
    } catch {
      track.stop();
      lacking.push(`This browser cannot provide the ${NAMES[track.kind]} in the required form.`);
    }
  }
  if (lacking.length) {
    const alone = kinds.map((kind) => `Predictions are from ${kind} only.`);
    notice("media", [...lacking, ...alone].join(" "), "Try again", restart);
  }
  if (!kinds.length) return stop();
  connection = new Connection(kinds, ON);
  byId("stop").disabled = false;
}

function stop() {
  connection?.close();
  context?.close();
  connection = context = null;
  tracks.forEach((track) => track.stop());
  sessionStorage.removeItem("running");
  byId("camera").hidden = byId("stop").disabled = true;
  byId("start").disabled = false;
  state("Stopped");
}

function restart() {
  stop();
  start();
}

const ON = {
  open() {
    notice("connection");
    state("Running; waiting for the first prediction");
  },
  lost(why) {
    state("Connection lost; trying again …");
    if (why) notice("connection", why);
  },
  end(why, button) {
    stop();
    notice("connection", why, button, start);
  },
  frame: ({ size, mesh }) => drawMesh(size, mesh),
  window: showWindow,
  saved: ({ said }) => notice("saved", said),
};

document.addEventListener("shown", ({ detail: { delay, left_out: leftOut } }) => {
  const slow = `; ${leftOut} skipped, as windows come faster than this computer predicts`;
  const text = `Running; ${Math.round(delay)} ms from capture to screen`;
  if (connection) state(leftOut ? text + slow : text);
});
document.title = byId("title").textContent = `Live: ${about.run}`;
const often = `A prediction every ${about.hop} s, from the last ${about.window} s.`;
byId("about").textContent = [often, ...about.trust].join(" ");
if (about.record) notice("record", `Features and predictions are recorded to ${about.record}.`);
byId("start").onclick = start;
byId("stop").onclick = stop;
addEventListener("resize", redraw);
if (sessionStorage.getItem("running")) start();
