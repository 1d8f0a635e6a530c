// Draws predictions, waveform and attention.
import about from "./about.js";
import { RATE } from "./devices.js";

const PIECE = 160; // samples per line of the waveform: 10 ms
// Pixels of a plot, of the title in it, of the space below, of the time axis.
const [ROW, TITLE, GAP, AXIS] = [64, 20, 10, 14];
export const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let wave = []; // [ms, amplitude]
let streams = {}; // of the last window
let waits = false; // whether a redraw is due with the next screen frame

export function addWave(time, samples) {
  wave = wave.filter(([at]) => at > time - 1000 * about.window - 1000);
  for (let place = 0; place < samples.length; place += PIECE) {
    const peak = Math.max(...samples.subarray(place, place + PIECE).map(Math.abs)) / 32768;
    wave.push([time + (1000 * place) / RATE, peak]);
  }
  redraw();
}

// Shows a prediction. When it is on the screen, the document gets the event "shown".
export function showWindow(answer) {
  ({ streams } = answer);
  drawPrediction(answer);
  redraw();
  const painted = () => {
    const detail = { ...answer, delay: performance.now() - answer.end };
    document.dispatchEvent(new CustomEvent("shown", { detail }));
  };
  requestAnimationFrame(() => setTimeout(painted));
}

// Draws waveform and attention once per screen frame; never in a hidden tab.
export function redraw() {
  if (waits) return;
  waits = true;
  requestAnimationFrame(() => {
    waits = false;
    drawTime();
  });
}

export function drawMesh(size, points) {
  const canvas = byId("mesh");
  [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  context.fillStyle = "#56f0ff";
  for (let at = 0; at < points.length; at += 2) {
    context.fillRect(points[at] - 1, points[at + 1] - 1, 2, 2);
  }
}

function drawPrediction({ predicted, probabilities, notes, streams }) {
  byId("predicted").textContent = predicted ?? "–";
  const from = predicted ? `from ${Object.keys(streams).join(" and ")}` : "no prediction";
  byId("notes").textContent = [from, ...notes].join("; ");
  about.classes.forEach((name, place) => {
    const row = byId("classes").rows[place] ?? byId("classes").insertRow();
    row.innerHTML = '<th></th><td><progress></progress></td><td class="number"></td>';
    row.cells[0].textContent = name;
    row.querySelector("progress").value = probabilities?.[place] ?? 0;
    row.cells[2].textContent = probabilities?.[place].toFixed(2) ?? "";
  });
}

// Waveform and attention on one time axis.
function drawTime() {
  const names = [...(about.kinds.includes("audio") ? ["waveform"] : []), ...about.modalities];
  const canvas = byId("time");
  const [width, height] = [canvas.clientWidth, names.length * (ROW + GAP) + AXIS];
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  context.font = `13px ${getComputedStyle(document.body).fontFamily}`;
  const now = performance.now();
  const perMs = width / (1000 * about.window + 500);
  const x = (time) => width - (now - time) * perMs;
  names.forEach((name, place) => {
    const top = place * (ROW + GAP);
    context.fillStyle = css("--panel");
    context.fillRect(0, top, width, ROW);
    context.fillStyle = css("--accent");
    let title = name;
    if (name === "waveform") {
      for (const [time, amplitude] of wave) {
        const high = Math.max(1, Math.sqrt(amplitude) * (ROW - TITLE));
        context.fillRect(x(time), top + (ROW + TITLE - high) / 2, 8 * perMs, high);
      }
    } else {
      const { times, ratio } = streams[name] ?? { times: [], ratio: [] };
      const most = Math.max(2, ...ratio);
      times.slice(1).forEach((until, n) => {
        const high = ((ROW - TITLE) * ratio[n]) / most; // 0 for null, a frame without data
        context.fillRect(x(times[n]), top + ROW - high, (until - times[n]) * perMs, high);
      });
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

drawPrediction({ notes: [] });
redraw();
