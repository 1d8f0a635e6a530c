// Sends the microphone's samples in int16 blocks, each with the index of its first sample.
const BLOCK = 640; // samples: 40 ms

class Blocks extends AudioWorkletProcessor {
  samples = new Int16Array(BLOCK);
  count = 0;

  process([[channel]]) {
    channel?.forEach((value, place) => {
      this.samples[this.count++] = 32767 * Math.max(-1, Math.min(1, value));
      if (this.count === BLOCK) {
        const first = currentFrame + place + 1 - BLOCK;
        this.port.postMessage({ first, samples: this.samples });
        this.count = 0;
      }
    });
    return true;
  }
}

registerProcessor("blocks", Blocks);
