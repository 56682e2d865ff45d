// The planner: a budget, and which size and how many tokens it is best spent on, by the chosen runs.

import {ask} from './api.js';
import {between, counted, loss, power, short} from './text.js';
import {element, list, show, table} from './dom.js';

const COUNTED = {non_embedding: 'non-embedding', non_embedding_with_head: 'non-embedding with head', unknown: 'as given'};

export class Planner {
  constructor(place, parameters) {
    this.parameters = parameters;
    this.asked = null;
    this.input = element('input', {
      type: 'text',
      class: 'budget',
      placeholder: '1e21, or 10 PF-days',
      'aria-label': 'Budget in FLOPs or PF-days',
      maxLength: 60,
    });
    this.answer = element('div', {class: 'answer', 'aria-live': 'polite'});
    const form = element(
      'form',
      {
        onsubmit: (event) => {
          event.preventDefault();
          this.asked = this.input.value;
          this.update();
        },
      },
      element('label', {}, 'Budget ', this.input),
      ' ',
      element('button', {type: 'submit'}, 'plan'),
    );
    place.append(form, this.answer);
  }

  /** Ask again: the runs have changed, or somebody typed. */
  async update(signal = undefined) {
    if (this.asked === null) return;
    const asked = this.asked;
    try {
      const found = await ask('./plan', {...this.parameters(), budget: asked}, signal);
      if (asked === this.asked) show(this.answer, ...plan(found));
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      if (asked === this.asked) show(this.answer, element('p', {class: 'reason'}, error.message));
    }
  }
}

function plan({N, D, L, budget, pf_days, tokens_per_param, intervals, level, runs, n_convention, method, notes, alternatives}) {
  const rows = [
    ['parameters', between(N, intervals.N), COUNTED[n_convention] ?? n_convention],
    ['tokens', between(D, intervals.D), ''],
    ['tokens per parameter', between(tokens_per_param, intervals.tokens_per_param), ''],
    ['loss', L === null ? 'unknown' : between(L, intervals.L, loss), L === null ? '' : 'nats per token'],
  ];
  const others = alternatives.map((row) => [
    row.name,
    short(row.N),
    short(row.D),
    short(row.D / row.N),
    row.L === null ? '' : loss(row.L),
    COUNTED[row.n_convention] ?? row.n_convention,
  ]);
  const percent = `${Math.round(100 * level)}%`;
  return [
    element('h3', {}, `${power(budget)} FLOPs, ${short(pf_days)} PF-days`),
    table(['', `best, ${percent} interval`, ''], rows, {class: 'numbers plan'}),
    element('p', {class: 'small'}, runs ? `From ${counted(runs, 'chosen run')}. ` : 'Without runs. ', `By: ${method}`),
    list(notes, {class: 'warnings'}),
    others.length
      ? element('details', {}, element('summary', {}, 'other laws'), table(['', 'N', 'D', 'D/N', 'loss', 'N counts'], others))
      : null,
  ];
}
