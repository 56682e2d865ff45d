// What to do now: of each chosen run the advice that matters most, warnings first; and where runs under way will end.

import {between, counted, loss} from './text.js';
import {element, show} from './dom.js';
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

/** The latest advice of each run and reason that asks for something, the worst first; not the speed of runs that ended. */
export function pressing(advice, runs) {
  const under = new Set(runs.filter(({status}) => status === 'running').map(({key}) => key));
  const latest = new Map(advice.map((each) => [`${each.key} ${each.reason}`, each]));
  const found = [...latest.values()].filter(
    ({severity, reason, key}) => RANK.includes(severity) && (reason !== 'hardware' || under.has(key)),
  );
  return found.sort((a, b) => RANK.indexOf(a.severity) - RANK.indexOf(b.severity) || (b.time ?? 0) - (a.time ?? 0));
}

function item({run, severity, what, do: todo}) {
  return element(
    'li',
    {class: severity},
    element('span', {class: 'severity'}, severity),
    ' ',
    element('b', {}, run),
    `: ${what}`,
    todo ? element('div', {class: 'do'}, element('b', {}, 'Do: '), todo) : null,
  );
}

function state({name, step, planned, forecast}) {
  const steps = step === null || step === undefined ? '–' : step.toLocaleString('en');
  const of = planned ? ` of ${planned.toLocaleString('en')}` : '';
  const ends = forecast ? `; forecast loss at the end ${between(forecast[0], forecast.slice(1), loss)}, 80% interval` : '';
  return element('li', {}, element('b', {}, name), ` is at step ${steps}${of}${ends}.`);
}

function lost(runs) {
  const names = runs.slice(0, MOST).map(({name}) => name).join(', ');
  const more = runs.length > MOST ? ` and ${runs.length - MOST} more` : '';
  return `Without news for longer than ten log intervals: ${names}${more}. They have not ended by themselves.`;
}
