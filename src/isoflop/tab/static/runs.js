// The list of runs, which of them are chosen (checked, and matching the filter, as in TensorBoard's own list), and the
// table of those.

import {between, counted, loss, natural, power, short} from './text.js';
import {element, show} from './dom.js';

const KEPT = 'isoflop.scaling';
const MOST_KEPT = 5000; // unchecked runs of all folders
const STATUS = {
  running: 'running',
  completed: 'completed',
  interrupted: 'ended early',
  rose: 'the loss rose',
  lost: 'no news: killed?',
};
const SILENT = 10; // log intervals without news
const LEAST_SILENT = 120; // seconds: an interval may be short

/** Whether a run that has not ended has sent nothing for several of its log intervals. */
export function isLost({status, time, every}) {
  return status === 'running' && !!time && Date.now() / 1000 - time > Math.max(LEAST_SILENT, SILENT * (every ?? 0));
}

/** What a run is doing, in a word. */
export function stateOf(run) {
  if (!run.run_id) return 'problem';
  if (run.status === 'running') return isLost(run) ? 'lost' : 'running';
  return run.stopped ? 'interrupted' : run.rose ? 'rose' : run.status;
}

const TEXTS = ['filter', 'group', 'x', 'loss', 'smooth', 'pin', 'view'];
const PREFIX = 'p.isoflop.'; // before what a plugin keeps in TensorBoard's address
const MOST_SHARED = 500; // unchecked runs in an address
const ELSEWHERE = '*'; // in place of more of them: those that this browser keeps

/** What work gives; undefined where nothing may be kept, or what was kept can't be read: the page goes on. */
function attempt(work) {
  try {
    return work();
  } catch {
    return undefined;
  }
}

/** The window whose address somebody sees: TensorBoard's; within a stranger's page this one. */
function outermost() {
  return attempt(() => window.parent.location.href && window.parent) ?? window;
}

function addressed() {
  const parts = outermost().location.hash.slice(1).split('&').filter((part) => part.startsWith(PREFIX));
  return Object.fromEntries(parts.map((part) => part.slice(PREFIX.length).split('=').map(decodeURIComponent)));
}

/** Which runs are unchecked, the filter, how losses are drawn, the pinned run, the part of the page: kept in the address,
 * so that a link shows the same, and in the browser. Runs that appear later are checked. */
export class Choice {
  constructor() {
    const given = attempt(addressed) ?? {};
    const local = attempt(() => JSON.parse(localStorage.getItem(KEPT))) ?? {};
    const unchecked = given.without === ELSEWHERE ? local.unchecked : given.without?.split(',');
    const kept = Object.keys(given).length ? {...given, unchecked} : {...local, view: ''};
    this.unchecked = new Set(Array.isArray(kept.unchecked) ? kept.unchecked : []);
    for (const name of TEXTS) this[name] = typeof kept[name] === 'string' ? kept[name] : '';
    this.pinned = null; // the pinned run itself, where it is there
  }

  keep() {
    const texts = Object.fromEntries(TEXTS.filter((name) => this[name]).map((name) => [name, this[name]]));
    const without = [...this.unchecked].slice(-MOST_KEPT);
    const shared = without.length ? {...texts, without: without.length > MOST_SHARED ? ELSEWHERE : without.join(',')} : texts;
    attempt(() => {
      const page = outermost();
      const others = page.location.hash.slice(1).split('&').filter((part) => part && !part.startsWith(PREFIX));
      const mine = Object.entries(shared).map(([name, text]) => `${PREFIX}${name}=${encodeURIComponent(text)}`);
      page.history.replaceState(page.history.state, '', `#${[...others, ...mine].join('&')}`);
    });
    attempt(() => localStorage.setItem(KEPT, JSON.stringify({...texts, unchecked: without})));
  }

  /** The filter as an expression; null where it is none, and then every run matches. */
  expression() {
    try {
      return new RegExp(this.filter, 'i');
    } catch {
      return null;
    }
  }

  matching(runs) {
    const expression = this.expression();
    return expression ? runs.filter((run) => expression.test(run.path) || expression.test(run.name)) : runs;
  }

  chosen(runs) {
    const inside = new Set(this.matching(runs).filter((run) => !this.unchecked.has(run.key)));
    return runs.filter((run) => inside.has(run) || run.key === this.pin);
  }

  /** The parameters that tell the server: the shorter of who is in and who is out. */
  parameters(runs) {
    const keys = this.chosen(runs).map((run) => run.key);
    const inside = new Set(keys);
    const out = runs.map((run) => run.key).filter((key) => !inside.has(key));
    const group = this.group ? {group: this.group} : {};
    if (!runs.length) return {...group, without: [...this.unchecked].slice(-200).join(',')};
    return {...group, ...(out.length > keys.length ? {runs: keys.join(',')} : {without: out.join(',')})};
  }
}

/** The list at the side. `changed` is called when somebody chooses. */
export class RunList {
  constructor(choice, changed) {
    this.choice = choice;
    this.changed = changed;
    this.runs = [];
    this.rows = new Map(); // by key: element and what it shows
    this.colours = new Map(); // by run_id: of its line in the first figure
    this.input = element('input', {
      type: 'search',
      class: 'filter',
      placeholder: 'filter (regular expression)',
      value: choice.filter,
      'aria-label': 'Filter runs by a regular expression',
      oninput: () => this.filter(),
    });
    this.said = element('p', {class: 'small'});
    this.list = element('ul', {class: 'runs'});
    this.top = element(
      'div',
      {class: 'side'},
      element('h2', {}, 'Runs'),
      this.input,
      element(
        'div',
        {class: 'buttons'},
        element('button', {type: 'button', class: 'all', onclick: () => this.all(true)}, 'all'),
        element('button', {type: 'button', class: 'none', onclick: () => this.all(false)}, 'none'),
      ),
      this.said,
      this.list,
    );
  }

  filter() {
    this.choice.filter = this.input.value;
    this.choose();
  }

  all(checked) {
    for (const {key} of this.choice.matching(this.runs)) this.check(key, checked);
    this.choose();
  }

  check(key, checked) {
    if (checked) this.choice.unchecked.delete(key);
    else this.choice.unchecked.add(key);
  }

  choose() {
    this.choice.keep();
    this.show(this.runs);
    this.changed();
  }

  /** Give each run the colour of its line. */
  paint(colours) {
    this.colours = colours;
    this.show(this.runs);
  }

  show(runs) {
    this.runs = runs;
    const bad = this.choice.expression() === null;
    this.input.classList.toggle('bad', bad);
    const matching = this.choice.matching(runs).sort((a, b) => natural(a.path, b.path));
    const chosen = this.choice.chosen(runs).length;
    this.said.textContent = bad
      ? 'not a regular expression'
      : `${chosen} of ${counted(runs.length, 'run')} chosen`;
    const kept = new Map();
    const items = matching.map((run) => {
      const told = JSON.stringify([run, isLost(run), this.colours.get(run.run_id)]);
      const old = this.rows.get(run.key);
      const row = old && old.told === told ? old : {told, item: this.row(run)};
      row.item.querySelector('input').checked = !this.choice.unchecked.has(run.key);
      kept.set(run.key, row);
      return row.item;
    });
    this.rows = kept;
    const same = items.length === this.list.children.length && items.every((item, i) => item === this.list.children[i]);
    if (!same) this.list.replaceChildren(...items);
  }

  swatch({run_id: id}) {
    const colour = this.colours.get(id);
    if (!colour) return null;
    const made = element('span', {class: 'swatch'});
    made.style.background = colour;
    return made;
  }

  row(run) {
    const box = element('input', {
      type: 'checkbox',
      onchange: () => {
        this.check(run.key, box.checked);
        this.choose();
      },
    });
    const folder = run.path.split('/').slice(0, -1).join('/');
    return element(
      'li',
      {title: tip(run)},
      element(
        'label',
        {},
        box,
        element(
          'span',
          {class: 'name'},
          this.swatch(run),
          run.name,
          folder && folder !== run.name ? element('span', {class: 'folder'}, ` ${folder}`) : null,
        ),
        badge(run),
        element('span', {class: 'facts'}, facts(run)),
      ),
    );
  }
}

/** The worst advice that the run got, else its state: a run with a warning is never green. */
function badge(run) {
  const state = stateOf(run);
  const worst = ['critical', 'warning'].includes(run.worst) ? run.worst : '';
  const title = [STATUS[state] ?? 'not readable', run.stopped, run.rose, worst && `advice: ${worst}`].filter(Boolean).join('; ');
  return element('span', {class: `status ${state} ${worst}`, title});
}

function facts(run) {
  if (!run.run_id) return run.problem ?? 'no record';
  const shown = newest(run);
  const share = run.planned && run.step !== null ? Math.round((100 * run.step) / run.planned) : null;
  const parts = [
    run.N && `N ${short(run.N)}`,
    run.D && `D ${short(run.D)}`,
    shown && `${run.losses[shown].toFixed(3)} ${shown.replace('eval/', '')}${age(run, shown)}`,
    stateOf(run) !== 'completed' && share !== null && share < 100 && `${share}%`,
  ];
  return parts.filter(Boolean).join(' · ') || 'no points yet';
}

/** An evaluation's loss, by which runs are compared, unless it is of the run's first half; then the one recorded last. */
function newest({losses, loss_steps: steps, step}) {
  const recent = (name) => name.startsWith('eval/') && 2 * steps[name] >= step;
  return Object.keys(losses).sort((one, other) => recent(other) - recent(one) || steps[other] - steps[one])[0];
}

/** The step of a loss where the run has gone on since. */
function age(run, name) {
  const step = run.loss_steps[name];
  return step < run.step ? ` (step ${step.toLocaleString('en')})` : '';
}

function tip(run) {
  if (!run.run_id) return run.problem ?? '';
  const lines = [
    run.path,
    [run.stopped, run.rose].filter(Boolean).join('; '),
    `${STATUS[stateOf(run)]}, step ${run.step === null ? '–' : run.step.toLocaleString('en')}`,
    `N ${short(run.N)}${counting([run])} · D ${short(run.D)} tokens without padding · C ${power(run.C)} FLOPs`,
    ...Object.entries(run.losses).map(([name, value]) => `${name} ${loss(value)} nats${age(run, name)}`),
    run.whole ? '' : 'read in part so far',
    run.problems ? counted(run.problems, 'line or value was', 'lines or values were') + ' skipped in reading' : '',
    run.problem ?? '',
  ];
  return lines.filter(Boolean).join('\n');
}

/** What was read so far, in a sentence. */
export function progress(place, told) {
  const said = [];
  if (!told.listed) said.push('Looking for records…');
  else if (!told.found) said.push('There are no records (isoflop-*.jsonl) below the log folder.');
  else if (told.read < told.found) said.push(`Reading ${told.read} of ${counted(told.found, 'run')}…`);
  else if (told.whole < told.found) {
    said.push(`Shown from a part of their points; read to the end so far: ${told.whole} of ${counted(told.found, 'run')}…`);
  }
  if (told.found && told.whole >= told.found) {
    if (told.state === 'fitting') said.push('Fitting the runs…');
    if (told.state === 'older') said.push('Runs have ended since this fit; fitting again…');
  }
  if (told.links) said.push(`${counted(told.links, 'link was', 'links were')} not followed: name its target with --logdir.`);
  show(place, ...said.map((text) => element('span', {}, text)));
}

// -- the table ----------------------------------------------------------------------------------------------------------

// name of the column, value to sort by, text
const COLUMNS = [
  ['run', (run) => run.name, (run) => run.name],
  ['state', (run) => stateOf(run), (run) => STATUS[stateOf(run)] ?? 'not readable'],
  ['step', (run) => run.step, (run) => run.step?.toLocaleString('en') ?? '–'],
  ['N', (run) => run.N, (run) => short(run.N)],
  ['D, tokens', (run) => run.D, (run) => short(run.D)],
  ['D/N', (run) => ratio(run), (run) => short(ratio(run))],
  ['C, FLOPs', (run) => run.C, (run) => power(run.C)],
  ['training loss', (run) => run.losses?.train, (run) => loss(run.losses?.train)],
  ['evaluation', evaluation, (run) => loss(evaluation(run))],
  ['forecast, 80%', (run) => run.forecast?.[0], (run) => (run.forecast ? between(run.forecast[0], run.forecast.slice(1), loss) : '–')],
  ['MFU', (run) => run.mfu, (run) => (run.mfu ? `${(100 * run.mfu).toFixed(1)}%` : '–')],
];

export class RunTable {
  /** `changed` is called when somebody pins a run. */
  constructor(place, choice, changed) {
    this.choice = choice;
    this.changed = changed;
    this.place = element('div', {class: 'scrolls'});
    this.column = 0;
    this.down = false;
    this.runs = [];
    place.append(this.place);
  }

  show(runs) {
    this.runs = runs;
    const [, value] = COLUMNS[this.column];
    const pinned = runs.find(({key}) => key === this.choice.pin) ?? null;
    this.choice.pinned = pinned;
    const sorted = [...runs].sort((a, b) => (b === pinned) - (a === pinned) || (this.down ? -1 : 1) * compare(value(a), value(b)));
    const columns = COLUMNS.map((column, i) => [i, ...column]).filter(([i, , known]) => !i || runs.some((run) => (known(run) ?? null) !== null));
    const heads = columns.map(([i, name]) =>
      element('th', {'aria-sort': i === this.column ? (this.down ? 'descending' : 'ascending') : 'none'},
        element('button', {type: 'button', onclick: () => this.sort(i)}, name === 'N' ? `N${counting(runs)}` : name)));
    const rows = sorted.map((run) =>
      element('tr', {class: run === pinned ? 'pinned' : ''}, ...columns.map(([i, , known, text]) =>
        element('td', {}, i ? null : this.pin(run), text(run), known === evaluation ? apart(run, pinned) : null))));
    show(this.place, element('table', {class: 'runtable'}, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...rows)));
  }

  pin(run) {
    const is = run.key === this.choice.pin;
    const title = is ? 'no longer compare with this run' : 'compare with this run: it comes first, its curve is thick, and it stays chosen';
    const pin = () => {
      this.choice.pin = is ? '' : run.key;
      this.choice.keep();
      this.changed();
    };
    return element('button', {type: 'button', class: 'pin', title, 'aria-pressed': String(is), onclick: pin}, is ? '★' : '☆');
  }

  sort(i) {
    this.down = i === this.column && !this.down;
    this.column = i;
    this.show(this.runs);
  }
}

/** How N is counted, where all runs that state it count it alike. */
function counting(runs) {
  const ways = new Set(runs.filter(({N}) => N).map(({convention}) => convention));
  return ways.size === 1 ? `, ${[...ways][0].replace('non embedding', 'non-embedding')}` : '';
}

/** How far the evaluation that two finished runs share lies from the pinned run's; of others there is no difference. */
function apart(run, pinned) {
  const [mine, other] = [run, pinned].map((each) => (each && stateOf(each) === 'completed' ? evaluationOf(each) : null));
  if (run === pinned || !mine || mine[0] !== other?.[0]) return null;
  const more = mine[1] - other[1];
  return element('span', {class: 'apart', title: 'less the pinned run’s'}, ` (${more < 0 ? '−' : '+'}${loss(Math.abs(more))})`);
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

function evaluationOf({losses}) {
  return Object.entries(losses ?? {}).find(([name]) => name.startsWith('eval/'));
}

function evaluation(run) {
  return evaluationOf(run)?.[1] ?? null;
}
