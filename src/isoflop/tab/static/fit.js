// The fitted law, and Hoffmann et al.'s three approaches side by side; or why there is none.

import {between, counted, power, short} from './text.js';
import {element, list, raised, show, table} from './dom.js';

/** Show a fit. */
export function showFit(place, fit) {
  if (fit.state === 'fitting') {
    show(place, element('p', {class: 'small'}, 'Fitting the runs…'));
    return;
  }
  show(
    place,
    element('p', {class: 'small'}, rests(fit)),
    fit.refused ? element('p', {class: 'reason'}, ...raised(`No law: ${fit.refused}.`)) : null,
    fit.law && fit.constants.length && !fit.refused ? law(fit) : null,
    fit.approaches.length || fit.without.length ? approaches(fit) : null,
    list([...new Set([...fit.doubts, ...fit.warnings])].filter((text) => !fit.refused?.includes(text)), {class: 'warnings'}),
    fit.left_out.length ? leftOut(fit.left_out) : null,
  );
}

function rests({counted: number, loss, convention, draws}) {
  const which = loss === 'train' ? 'training loss' : `loss “${loss.replace('eval/', '')}”`;
  const size = convention.replaceAll('_', ' ').replace('non embedding', 'non-embedding');
  return `${counted(number, 'finished run')}; final ${which}; N counted ${size}; intervals by ${short(draws)} resamples.`;
}

const GREEK = {alpha: 'α', beta: 'β'};

function law({law: text, constants, level}) {
  const digits = (value) => (value === null ? '–' : Number(value.toPrecision(4)).toString());
  const rows = constants.map(({name, value, error, interval}) => [
    GREEK[name] ?? name,
    value === null ? 'not determined' : digits(value),
    digits(error),
    value === null ? '–' : interval[1] === null ? 'unknown' : `${digits(interval[0])} … ${digits(interval[1])}`,
  ]);
  return element(
    'div',
    {},
    element('h3', {}, ...raised(text)),
    table(['', 'value', 'standard error', percent(level)], rows, {class: 'numbers'}),
  );
}

const LEADS =
  'The posterior, of these runs and published sweeps, is what the planner answers by; the approaches of Hoffmann et al. 2022 ' +
  'are of these runs alone, approach 3 the fitted law extrapolated as it stands.';

function approaches({approaches: found, without, C, level}) {
  const rows = found.map(({name, a, b, N, D}) => [
    name,
    between(a.value, a.interval, (value) => value.toFixed(2)),
    between(b.value, b.interval, (value) => value.toFixed(2)),
    between(N.value, N.interval),
    between(D.value, D.interval),
  ]);
  const heads = ['', 'a in N ∝ Cᵃ', 'b in D ∝ Cᵇ'];
  if (C !== null) heads.push(`N at ${power(C)} FLOPs`, 'D there');
  return element(
    'div',
    {},
    element('h3', {}, `Compute-optimal size and tokens, ${percent(level)} intervals`),
    element('p', {class: 'small'}, LEADS),
    found.length ? table(heads, rows, {class: 'numbers approaches'}) : null,
    list(without.map(({name, reason}) => `${name} gives no estimate: ${reason}`), {class: 'without'}),
  );
}

function leftOut(groups) {
  const texts = groups.map(({why, runs, names}) => {
    const more = runs > names.length ? ` and ${runs - names.length} more` : '';
    return `${why}: ${names.join(', ')}${more}`;
  });
  const number = groups.reduce((sum, {runs}) => sum + runs, 0);
  return element('details', {}, element('summary', {}, `${counted(number, 'run')} not counted`), list(texts));
}

function percent(level) {
  return `${Math.round(100 * level)}%`;
}
