// Elements of the page. Texts are set as text, never as HTML: names and advice come from files that anybody may have
// written.

/** An element with properties, and children that are elements or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === 'class') made.className = value;
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A table of texts, with a head. */
export function table(heads, rows, properties = {}) {
  const cell = (tag) => (content) => element(tag, {}, content ?? '');
  return element(
    'div',
    {class: 'scrolls'},
    element(
      'table',
      properties,
      element('thead', {}, element('tr', {}, ...heads.map(cell('th')))),
      element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map(cell('td'))))),
    ),
  );
}

/** A list of sentences; none where there are none. */
export function list(texts, properties = {}) {
  return texts.length ? element('ul', properties, ...texts.map((text) => element('li', {}, ...raised(text)))) : null;
}

/** A text with its powers raised: A/N^α, C^0.49. */
export function raised(text) {
  return text
    .split(/\^(-?[0-9.]*[0-9]|\p{Ll}(?!\p{L}))/u)
    .map((part, i) => (i % 2 ? element('sup', {}, part) : part));
}

/** Put children in place of what an element holds, unless it shows the same already. What was unfolded stays so. */
export function show(place, ...children) {
  const made = element('div', {}, ...children);
  const unfolded = new Set([...place.querySelectorAll('details[open]')].map(titleOf));
  for (const details of made.querySelectorAll('details')) details.open = unfolded.has(titleOf(details));
  if (made.innerHTML !== place.innerHTML) place.replaceChildren(...made.childNodes);
}

function titleOf(details) {
  return details.dataset.id ?? details.querySelector('summary').textContent;
}
