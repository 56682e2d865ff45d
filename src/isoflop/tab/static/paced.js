// Work that is done again when there is something new, but not all the time: it rests in proportion to what it took.

const REST = 4; // times what it took

export class Paced {
  /** `work` is an async function of an AbortSignal. */
  constructor(work) {
    this.work = work;
    this.done = null; // the version that is shown
    this.running = null;
    this.rests = 0; // until when
  }

  /** Bring it to a version, unless it is there, on its way or at rest; the next question will ask again. */
  async want(version, urgent = false) {
    if (version === null || version === this.done || version === this.running?.version) return;
    if (!urgent && (this.running || performance.now() < this.rests)) return;
    this.running?.abort.abort();
    const running = {version, abort: new AbortController()};
    this.running = running;
    const begun = performance.now();
    try {
      await this.work(running.abort.signal);
      if (this.running === running) this.done = version;
    } catch (error) {
      if (error.name !== 'AbortError') throw error;
    } finally {
      if (this.running === running) {
        this.running = null;
        this.rests = performance.now() + REST * (performance.now() - begun);
      }
    }
  }
}
