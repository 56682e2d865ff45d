// The chosen runs as a table that sorts by any column.

import {between, loss, short} from './text.js';
import {element, show} from './dom.js';
import {stateOf} from './runs.js';

const natural = new Intl.Collator('en', {numeric: true}).compare;
// name of the column, value to sort by, text
const COLUMNS = [
  ['run', (run) => run.name, (run) => run.name],
  ['state', (run) => stateOf(run), (run) => stateOf(run)],
  ['step', (run) => run.step, (run) => run.step?.toLocaleString('en') ?? '–'],
  ['N', (run) => run.N, (run) => short(run.N)],
  ['D, tokens', (run) => run.D, (run) => short(run.D)],
  ['D/N', (run) => ratio(run), (run) => short(ratio(run))],
  ['C, FLOPs', (run) => run.C, (run) => short(run.C)],
  ['training loss', (run) => run.losses?.train, (run) => loss(run.losses?.train)],
  ['evaluation', (run) => evaluation(run), (run) => loss(evaluation(run))],
  ['forecast, 80%', (run) => run.forecast?.[0], (run) => (run.forecast ? between(run.forecast[0], run.forecast.slice(1), loss) : '–')],
  ['MFU', (run) => run.mfu, (run) => (run.mfu ? `${(100 * run.mfu).toFixed(1)}%` : '–')],
];

export class RunTable {
  constructor(place) {
    this.place = element('div', {class: 'scrolls'});
    this.column = 0;
    this.down = false;
    this.runs = [];
    place.append(this.place);
  }

  show(runs) {
    this.runs = runs;
    const [, value] = COLUMNS[this.column];
    const sorted = [...runs].sort((a, b) => (this.down ? -1 : 1) * compare(value(a), value(b)));
    const heads = COLUMNS.map(([name], i) =>
      element('th', {'aria-sort': i === this.column ? (this.down ? 'descending' : 'ascending') : 'none'},
        element('button', {type: 'button', onclick: () => this.sort(i)}, name)));
    const rows = sorted.map((run) => element('tr', {}, ...COLUMNS.map(([, , text]) => element('td', {}, text(run)))));
    show(this.place, element('table', {class: 'runtable'}, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...rows)));
  }

  sort(i) {
    this.down = i === this.column && !this.down;
    this.column = i;
    this.show(this.runs);
  }
}

/** Names by their numbers (10 after 9), numbers by size; what is unknown comes last either way up. */
function compare(a, b) {
  const [none, other] = [a ?? null, b ?? null].map((each) => each === null);
  if (none || other) return none - other;
  return typeof a === 'string' ? natural(a, b) : a - b;
}

function ratio({D, N}) {
  return D && N ? D / N : null;
}

function evaluation({losses}) {
  return Object.entries(losses ?? {}).find(([name]) => name.startsWith('eval/'))?.[1] ?? null;
}
