// Questions to the server, and their pace. Addresses are relative to this module's: TensorBoard may live below a prefix.

/** The answer to a question, as JSON. Rejects with the server's sentence where there is one. */
export async function ask(route, parameters = {}, signal = undefined) {
  const address = new URL(route, import.meta.url);
  address.search = new URLSearchParams(parameters);
  const response = await fetch(address, {signal, credentials: 'same-origin'});
  const answer = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

/** Load a script of ours. */
export function script(route) {
  return new Promise((resolve, reject) => {
    const tag = document.createElement('script');
    tag.src = new URL(route, import.meta.url);
    tag.onload = resolve;
    tag.onerror = () => reject(new Error(`${route} could not be loaded`));
    document.head.append(tag);
  });
}

const REST = 4; // times what it took

/** Work that is done again when there is something new, with rests in proportion to what it took. */
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
