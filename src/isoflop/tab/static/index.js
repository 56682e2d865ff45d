// The Scaling tab: what it is made of, and the questions that keep it up to date.

import {ask, Paced} from './api.js';
import {element, show} from './dom.js';
import {Choice, progress, RunList, RunTable} from './runs.js';
import {Figures} from './figures.js';
import {followTheme} from './theme.js';
import {Planner} from './planner.js';
import {pressing, showAdvice, showNow} from './advice.js';
import {showFit} from './fit.js';

// Milliseconds between two questions: until something of every run is known, while they are read and fitted, and then.
const OFTEN = 200;
const NOW_AND_THEN = 1000;
const SELDOM = 3000;
const REST = 4; // times what the last answer took: of thousands of runs it is long

/** Called by TensorBoard's page. */
export function render() {
  const style = element('link', {rel: 'stylesheet', href: new URL('./style.css', import.meta.url).href});
  document.head.append(style, element('meta', {name: 'viewport', content: 'width=device-width'}));
  new Tab(document.body);
}

class Tab {
  constructor(body) {
    this.told = {runs: []};
    this.timer = null;
    this.asking = false;
    this.again = false;
    this.urgent = false;
    this.choice = new Choice();
    const parameters = () => this.choice.parameters(this.told.runs);
    this.list = new RunList(this.choice, () => this.poll(true));
    this.said = element('div', {class: 'said', role: 'status'});
    const figures = element('div', {class: 'figures'});
    const panel = (name, title) => element('section', {class: `card ${name}`}, element('h2', {}, title));
    const planner = panel('planner', 'Plan a run');
    this.fit = element('div');
    this.advice = element('div');
    const fit = panel('fit', 'What is fitted');
    const advice = panel('advice', 'Advice');
    this.groups = element('select', {'aria-label': 'which runs are fitted together', onchange: () => this.regroup()});
    this.grouping = element('p', {class: 'small', hidden: true}, 'fitted together ', this.groups);
    fit.append(this.grouping, this.fit);
    advice.append(this.advice);
    const now = panel('now', 'What to do now');
    const runs = panel('runs-table', 'Runs');
    this.now = element('div', {}, element('p', {class: 'small'}, 'Reading the records …'));
    now.append(this.now);
    this.table = new RunTable(runs, this.choice, () => this.poll(true));
    const parts = [['Now', now], ['Figures', figures], ['Runs', runs], ['Fit', fit], ['Plan', planner], ['Advice', advice]];
    this.parts = new Map(parts);
    const buttons = parts.map(([name]) => element('button', {type: 'button', onclick: () => this.view(name)}, name));
    const toAdvice = buttons.at(-1);
    const head = element('nav', {class: 'head'}, ...buttons, this.said);
    body.append(
      element('div', {class: 'page'}, this.list.top, element('main', {}, head, now, figures, runs, fit, planner, advice)),
    );
    this.figures = new Figures(figures, this.choice, parameters, (colours) => this.list.paint(colours));
    this.planner = new Planner(planner, parameters);
    this.parameters = parameters;
    this.panels = [
      new Paced(async (signal) => {
        const {advice: said} = await ask('./advice', parameters(), signal);
        const chosen = this.choice.chosen(this.told.runs);
        showAdvice(this.advice, said, chosen.length);
        showNow(this.now, said, chosen, () => toAdvice.click());
        const open = pressing(said, chosen).reduce((sum, {others}) => sum + 1 + others.length, 0);
        toAdvice.textContent = open ? `Advice (${open})` : 'Advice';
      }),
      new Paced(async (signal) => showFit(this.fit, await ask('./fit', parameters(), signal))),
      new Paced((signal) => this.planner.update(signal)),
    ];
    followTheme(() => this.update(true));
    document.addEventListener('visibilitychange', () => this.poll());
    new ResizeObserver(() => this.poll()).observe(document.documentElement); // another tab was open: it had no size
    this.poll();
  }

  /** Offer the groups of runs: folders and data sets. One alone is no choice. */
  offer(groups) {
    this.grouping.hidden = groups.length < 2;
    const names = [['', 'the largest group'], ...groups.map((name) => [name, name === '.' ? 'the log folder itself' : name]), ['*', 'all chosen runs']];
    const told = JSON.stringify(names);
    if (told === this.offered) return;
    this.offered = told;
    this.groups.replaceChildren(...names.map(([value, text]) => element('option', {value}, text)));
    this.groups.value = groups.includes(this.choice.group) || this.choice.group === '*' ? this.choice.group : '';
  }

  /** Go to a part of the page; it is kept in the address. */
  view(name) {
    this.parts.get(name)?.scrollIntoView({block: 'start'});
    this.choice.view = name;
    this.choice.keep();
  }

  regroup() {
    this.choice.group = this.groups.value;
    this.choice.keep();
    this.poll(true);
  }

  /** Ask for what is new, now and then again. `urgent`: somebody chose other runs. */
  async poll(urgent = false) {
    this.urgent ||= urgent;
    if (this.asking) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    if (document.hidden || !document.documentElement.clientWidth) return; // nobody looks: an event calls again
    this.asking = true;
    this.again = false;
    const now = this.urgent;
    this.urgent = false;
    const begun = performance.now();
    try {
      const told = await ask('./runs', {...this.parameters(), have: this.told.version ?? ''});
      this.told = {...this.told, ...told};
      this.list.show(this.told.runs);
      this.table.show(this.choice.chosen(this.told.runs));
      progress(this.said, this.told);
      this.offer(this.told.groups ?? []);
      this.update(now);
    } catch (error) {
      show(this.said, element('span', {class: 'reason'}, `TensorBoard does not answer: ${error.message}`));
    }
    this.asking = false;
    const rest = Math.max(this.pause(), REST * (performance.now() - begun));
    this.timer = setTimeout(() => this.poll(), this.again ? 0 : rest);
  }

  /** Milliseconds until the next question. */
  pause() {
    const {listed, found, read, whole, state} = this.told;
    if (!listed || read < found) return OFTEN;
    return found && (whole < found || state !== 'fitted' || this.figures.behind) ? NOW_AND_THEN : SELDOM;
  }

  /** Bring up to date what shows something older. */
  update(urgent = false) {
    const {drawn, figures} = this.told;
    if (!drawn) return; // nothing was read yet
    const losses = new Set(this.told.runs.flatMap((run) => Object.keys(run.losses ?? {})));
    const want = (panel) => panel.want(drawn, urgent).catch((error) => console.warn(`isoflop: ${error.message}`));
    const [advice, ...others] = this.panels; // a browser asks six questions at once: advice is what one sees first
    want(advice);
    this.figures.update(figures, drawn, urgent, losses);
    others.forEach(want);
    if (this.choice.view && !this.viewed) this.view(this.choice.view);
    this.viewed = true;
  }
}
