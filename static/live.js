// The way to the server and back: a request for everything a person does, one stream for all answers on their way.
"use strict";

const UNREACHABLE = { error: { code: "Unreachable", message: "the server of this page cannot be reached" }, unreachable: true };
const REOPEN_MS = [500, 1000, 2000, 4000];

// Browsers open six connections to a server at most, so that all chats of a tab share a stream. It is opened anew when
// another answer is waited for, and ends when none is on its way. A chat that is no longer shown is followed all the same:
// an answer that nobody reads is stopped.
class Live {
  constructor() {
    this.rooms = new Map(); // those that are answered, with what the server is asked for them with
    this.panes = new Set();
    this.reading = null; // the rooms in the stream, and how to end it
    this.failures = 0;
  }

  // The chat after what was done, or what went wrong.
  async act(message) {
    try {
      const answer = await fetch("live/act", asJson(message));
      return { room: message.room, ...(await answer.json()) };
    } catch {
      return UNREACHABLE;
    }
  }

  follow(pane) {
    this.panes.add(pane);
    this.rooms.set(pane.secret, pane.addressed({}));
    this.soon(0);
  }

  soon(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }

  open() {
    const rooms = new Set(this.rooms.keys());
    if ([...rooms].every((room) => this.reading?.rooms.has(room))) return;
    const stop = new AbortController();
    const before = this.reading;
    const reading = { rooms, stop };
    this.reading = reading;
    this.read([...this.rooms.values()], stop.signal, () => before?.stop.abort()).catch(() => {}).finally(() => {
      if (this.reading !== reading) return;
      this.reading = null;
      // What is still waited for was cut off, by the server's end or a network that went away for a moment.
      if (this.rooms.size) this.soon(REOPEN_MS[Math.min(this.failures++, REOPEN_MS.length - 1)]);
    });
  }

  async read(messages, signal, begun) {
    let answer;
    try {
      answer = await fetch("live/follow", { ...asJson({ rooms: messages }), signal });
    } finally {
      begun();
    }
    if (answer.ok) await readEvents(answer, (heard) => this.hand(heard));
  }

  hand(heard) {
    if (heard.error || heard.running === false) {
      this.rooms.delete(heard.room);
      this.reading?.rooms.delete(heard.room); // what is answered there next is not in the stream any more
    } else this.failures = 0;
    for (const pane of this.panes) if (pane.secret === heard.room) pane.hear(heard);
  }
}

const live = new Live();

// Until the stream ends; throws where it was cut off.
async function readEvents(answer, hand) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) hand(JSON.parse(event.slice(6)));
  }
}

function asJson(message) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message) };
}
