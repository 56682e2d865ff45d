// Questions to the server. Addresses are relative, to this module's own: TensorBoard may live below a prefix.

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
