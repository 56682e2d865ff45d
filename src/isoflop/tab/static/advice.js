// The advice that runs got while they trained, as a timeline: the latest first.

import {counted, moment, quantity} from './text.js';
import {element, list, show, table} from './dom.js';

/** Show advice; `runs` is how many runs were asked about. */
export function showAdvice(place, advice, runs) {
  if (!advice.length) {
    show(place, element('p', {class: 'small'}, `No rule of advice applied to the ${counted(runs, 'chosen run')}.`));
    return;
  }
  show(place, element('ol', {class: 'timeline'}, ...[...advice].reverse().map(item)));
}

function item({key, run, time, step, reason, severity, what, label, do: todo, numbers, saves, basis, probability, level}) {
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
