// The advice of the chosen runs: what to do now, the worst first; and all of it as a timeline, the latest first.

import {between, counted, loss, moment, quantity} from './text.js';
import {element, list, show, table} from './dom.js';
import {isLost} from './runs.js';

const RANK = ['critical', 'warning', 'info'];
const MOST = 4; // of each list: this is what one sees first

/** Show what asks for something; `open` leads to all advice. */
export function showNow(place, advice, runs, open) {
  const found = pressing(advice, runs);
  const live = runs.filter((run) => run.status === 'running' && !isLost(run));
  const rest = found.length - MOST;
  show(
    place,
    found.length
      ? element('ul', {class: 'pressing'}, ...found.slice(0, MOST).map(item))
      : element('p', {}, runs.length ? `No warnings in the records of ${counted(runs.length, 'chosen run')}.` : 'No run is chosen.'),
    live.length ? element('ul', {class: 'live'}, ...live.slice(0, MOST).map(state)) : null,
    runs.some(isLost) ? element('p', {class: 'reason'}, lost(runs.filter(isLost))) : null,
  );
  if (rest > 0) place.append(element('button', {type: 'button', onclick: open}, `${rest} more`));
}

/** The latest advice that asks for something, one entry a reason, the worst first; not the speed of runs that ended. */
export function pressing(advice, runs) {
  const under = new Set(runs.filter(({status}) => status === 'running').map(({key}) => key));
  const latest = new Map(advice.map((each) => [`${each.key} ${each.reason}`, each]));
  const found = [...latest.values()].filter(
    ({severity, reason, key}) => RANK.includes(severity) && (reason !== 'hardware' || under.has(key)),
  );
  found.sort((a, b) => RANK.indexOf(a.severity) - RANK.indexOf(b.severity) || (b.time ?? 0) - (a.time ?? 0));
  const alike = new Map();
  for (const each of found) {
    const same = `${each.severity} ${each.reason} ${each.label}`;
    if (alike.has(same)) alike.get(same).others.push(each.run);
    else alike.set(same, {...each, others: []});
  }
  return [...alike.values()];
}

function item({run, step, others, severity, what, label, do: todo}) {
  return element(
    'li',
    {class: severity},
    element('span', {class: 'severity'}, severity),
    ' ',
    element('b', {}, run),
    `, step ${step.toLocaleString('en')}: ${what}`,
    others.length ? element('div', {class: 'small'}, `The same reason in ${counted(others.length, 'other run')}: ${few(others)}.`) : null,
    todo ? element('div', {class: 'do'}, element('b', {}, `${label}: `), todo) : null,
  );
}

function state({name, step, planned, forecast, forecast_step: made}) {
  const steps = step === null || step === undefined ? '–' : step.toLocaleString('en');
  const of = planned ? ` of ${planned.toLocaleString('en')}` : '';
  const age = forecast && made !== null && made < step ? `, as of step ${made.toLocaleString('en')}` : '';
  const ends = forecast ? `; forecast loss at the end ${between(forecast[0], forecast.slice(1), loss)}, 80% interval${age}` : '';
  return element('li', {}, element('b', {}, name), ` is at step ${steps}${of}${ends}.`);
}

function lost(runs) {
  const names = few(runs.map(({name}) => name));
  return `No news for more than ten log intervals, and no end in the record (killed, or hanging): ${names}.`;
}

/** The first names, and how many more there are. */
function few(names) {
  return names.slice(0, MOST).join(', ') + (names.length > MOST ? ` and ${names.length - MOST} more` : '');
}

// -- the timeline -------------------------------------------------------------------------------------------------------

/** Show advice; `runs` is how many runs were asked about. */
export function showAdvice(place, advice, runs) {
  if (!advice.length) {
    show(place, element('p', {class: 'small'}, `No rule of advice applied to the ${counted(runs, 'chosen run')}.`));
    return;
  }
  show(place, element('ol', {class: 'timeline'}, ...[...advice].reverse().map(entry)));
}

function entry({key, run, time, step, reason, severity, what, label, do: todo, numbers, saves, basis, probability, level}) {
  const rows = [
    ...numbers.map(quantity),
    ...saves.map((each) => quantity(each)).map(([name, value]) => [`worth: ${name}`, value]),
  ];
  const estimated = [...numbers, ...saves].some((each) => each.low !== null) && level !== null;
  const sure = probability === null ? null : `Probability ${share(probability)}.`;
  const known = ['note', 'info', 'warning', 'critical'].includes(severity) ? severity : 'note';
  const details = element(
    'details',
    {},
    element('summary', {}, 'numbers, and what it is based on'),
    rows.length ? table(['', estimated ? `value [${share(level)} interval]` : 'value'], rows) : null,
    sure && element('p', {}, sure),
    list(basis, {class: 'basis'}),
  );
  details.dataset.id = `${key} ${step} ${reason}`;
  return element(
    'li',
    {class: known},
    element(
      'div',
      {class: 'when'},
      element('span', {class: 'severity'}, severity || 'note'),
      ` ${run} · step ${step.toLocaleString('en')}`,
      time === null ? '' : ` · ${moment(time)}`,
    ),
    element('p', {class: 'what'}, what),
    todo ? element('p', {class: 'do'}, element('b', {}, `${label}: `), todo) : null,
    rows.length || basis.length ? details : null,
  );
}

function share(value) {
  if (value > 0.99) return 'over 99%';
  return value < 0.01 ? 'under 1%' : `${Math.round(100 * value)}%`;
}
