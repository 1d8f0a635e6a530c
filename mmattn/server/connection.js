// The WebSocket to `mmattn live`, which reconnects; session.py describes the messages.
export const [FRAME, AUDIO] = [1, 2];
const [TAKEN, BAD] = [4001, 1007]; // the server's close codes
const OUTSTANDING = 2; // unanswered frames at most: with more, answers would lag ever further
const UNSENT = 2 ** 20; // bytes waiting in the socket at most: 30 s of audio

export class Connection {
  #tries = 0;
  #outstanding = 0;
  #isClosed = false;

  // on: functions `open()`, `lost(why?)`, `end(why, button)`, and one for each type of answer.
  constructor(kinds, on) {
    [this.kinds, this.on] = [kinds, on];
    this.#open();
  }

  #open() {
    const socket = (this.socket = new WebSocket(`stream?kinds=${this.kinds}`));
    socket.onopen = () => {
      this.#tries = this.#outstanding = 0;
      this.on.open();
    };
    socket.onmessage = ({ data }) => {
      const answer = JSON.parse(data);
      this.#outstanding -= answer.type === "frame";
      this.on[answer.type](answer);
    };
    socket.onclose = (event) => this.#isClosed || this.#openAgain(event);
  }

  async #openAgain({ code, reason }) {
    if (code === TAKEN) return this.on.end("Another tab or window has taken over.", "Use this one");
    if (code === BAD) return this.on.end(reason);
    this.on.lost();
    this.#tries += 1;
    await new Promise((done) => setTimeout(done, Math.min(5000, 250 * 2 ** this.#tries)));
    const answer = await fetch(location, { cache: "no-store" }).catch(() => null);
    if (this.#isClosed) return;
    if (answer?.status === 403) {
      return this.on.end("mmattn live was restarted: open the address that it printed.");
    }
    if (!answer) this.on.lost("mmattn live does not answer. Was it stopped?");
    this.#open();
  }

  get #isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  // Whether a frame may be sent; if so, it counts as sent.
  takeFrame() {
    const isFree = this.#isOpen && this.#outstanding < OUTSTANDING;
    this.#outstanding += isFree;
    return isFree;
  }

  send(kind, time, content) {
    if (!this.#isOpen || this.socket.bufferedAmount > UNSENT) {
      this.#outstanding -= kind === FRAME;
      return;
    }
    const message = new Uint8Array(16 + content.byteLength);
    const header = new DataView(message.buffer);
    header.setUint8(0, kind);
    header.setFloat64(8, time, true);
    message.set(new Uint8Array(content), 16);
    this.socket.send(message);
  }

  // The server writes the recording and reports it before it closes.
  close() {
    this.#isClosed = true;
    if (this.#isOpen) this.socket.send("end");
    else this.socket.close();
  }
}
