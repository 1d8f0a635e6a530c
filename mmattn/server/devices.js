// Camera and microphone. Times are on the page's clock, performance.now(), in ms.
import about from "./about.js";

export const RATE = 16000; // Hz
export const NAMES = { audio: "microphone", video: "camera" };
const SIDE = 640; // pixels, at most, of the longer side of a frame to send
const LEAK = 0.05; // ms per block: more than two clocks drift apart
const BREAK = 5000; // ms of delay that mean the audio clock stood still: the computer slept
const WANTED = {
  audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
};
const WHY = {
  NotAllowedError: "the browser may not use it; allow it next to the page's address",
  NotFoundError: "there is none",
  NotReadableError: "another program uses it",
};

async function ask(kinds) {
  const wanted = Object.fromEntries(kinds.map((kind) => [kind, WANTED[kind]]));
  return (await navigator.mediaDevices.getUserMedia(wanted)).getTracks();
}

// The tracks that the run needs, and why any of them is missing.
export async function openDevices() {
  const [tracks, lacking] = [[], []];
  try {
    tracks.push(...(await ask(about.kinds))); // asks the user once
  } catch {
    for (const kind of about.kinds) {
      try {
        tracks.push(...(await ask([kind])));
      } catch (error) {
        lacking.push(`No ${NAMES[kind]}: ${WHY[error.name] ?? error.message}.`);
      }
    }
  }
  return { tracks, lacking };
}

// Calls `give(time, samples)` with the blocks of a microphone. Returns its AudioContext; throws
// if the browser has no audio at 16 kHz.
export async function hear(track, give) {
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule("worklet.js");
  const source = context.createMediaStreamSource(new MediaStream([track]));
  const blocks = new AudioWorkletNode(context, "blocks", { numberOfOutputs: 0 });
  const latency = 1000 * (track.getSettings().latency ?? 0);
  let apart = Infinity; // ms from the audio clock to the page's
  blocks.port.onmessage = ({ data: { first, samples } }) => {
    // No block arrives early, so the least late one gives the offset of the clocks.
    const late = performance.now() - (1000 * (first + samples.length)) / RATE;
    apart = late > apart + BREAK ? late : Math.min(apart + LEAK, late);
    give((1000 * first) / RATE + apart - latency, samples);
  };
  source.connect(blocks);
  context.resume(); // refused until the user has clicked once
  return context;
}

// Plays a camera, and calls `give(time, jpeg)` with frames at the rate of the features, while
// `isFree()`.
export async function see(track, video, isFree, give) {
  video.srcObject = new MediaStream([track]);
  await video.play();
  const canvas = document.createElement("canvas");
  const period = 1000 / about.rate;
  let due = 0;
  const next = (now, { captureTime, presentationTime }) => {
    if (track.readyState === "ended") return;
    video.requestVideoFrameCallback(next);
    const time = captureTime ?? presentationTime;
    if (time < due - period / 4 || !isFree()) return;
    due = Math.max(due + period, time + period / 2);
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(scale * video.videoWidth);
    canvas.height = Math.round(scale * video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(async (blob) => give(time, await blob.arrayBuffer()), "image/jpeg", 0.85);
  };
  video.requestVideoFrameCallback(next);
}
