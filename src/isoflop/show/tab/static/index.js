// The Scaling tab: what it is made of, and the questions that keep it up to date.

import {ask} from './api.js';
import {element, show} from './dom.js';
import {Choice, progress, RunList} from './runs.js';
import {Figures} from './figures.js';
import {followTheme} from './theme.js';
import {Planner} from './planner.js';
import {showAdvice} from './advice.js';
import {showFit} from './fit.js';

const OFTEN = 300; // milliseconds between two questions while records are read or runs fitted
const SELDOM = 3000; // and while runs train

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
    this.shown = {}; // versions of what the panels show
    this.choice = new Choice();
    const parameters = () => this.choice.parameters(this.told.runs);
    this.list = new RunList(this.choice, () => this.poll());
    this.said = element('div', {class: 'said', role: 'status'});
    const figures = element('div', {class: 'figures'});
    const panel = (name, title) => element('section', {class: `card ${name}`}, element('h2', {}, title));
    const planner = panel('planner', 'Plan a run');
    this.fit = element('div');
    this.advice = element('div');
    const fit = panel('fit', 'What is fitted');
    const advice = panel('advice', 'Advice');
    fit.append(this.fit);
    advice.append(this.advice);
    body.append(
      element(
        'div',
        {class: 'page'},
        this.list.top,
        element('main', {}, this.said, figures, element('div', {class: 'panels'}, fit, planner, advice)),
      ),
    );
    this.figures = new Figures(figures, parameters);
    this.planner = new Planner(planner, parameters);
    this.parameters = parameters;
    followTheme(() => this.update());
    document.addEventListener('visibilitychange', () => this.poll());
    new ResizeObserver(() => this.poll()).observe(document.documentElement); // another tab was open: it had no size
    this.poll();
  }

  /** Ask for what is new, now and then again. */
  async poll() {
    if (this.asking) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    if (document.hidden || !document.documentElement.clientWidth) return; // nobody looks: an event calls again
    this.asking = true;
    try {
      const told = await ask('./runs', {...this.parameters(), have: this.told.version ?? ''});
      this.told = {...this.told, ...told};
      this.list.show(this.told.runs);
      progress(this.said, this.told);
      this.update();
    } catch (error) {
      show(this.said, element('span', {class: 'reason'}, `TensorBoard does not answer: ${error.message}`));
    }
    this.asking = false;
    const busy = !this.told.listed || this.told.whole < this.told.found || this.told.state !== 'fitted';
    this.timer = setTimeout(() => this.poll(), this.again ? 0 : busy && this.told.found !== 0 ? OFTEN : SELDOM);
    this.again = false;
  }

  /** Bring up to date what shows something older. */
  update() {
    if (!this.told.version) return;
    const {drawn, figures, read} = this.told;
    if (read) this.figures.update(figures, drawn);
    this.panel('fit', drawn, async () => showFit(this.fit, await ask('./fit', this.parameters())));
    this.panel('plan', drawn, () => this.planner.update());
    this.panel('advice', drawn, async () => {
      const {advice} = await ask('./advice', this.parameters());
      showAdvice(this.advice, advice, this.choice.chosen(this.told.runs).length);
    });
  }

  async panel(name, version, show) {
    if (this.shown[name] === version) return;
    this.shown[name] = version;
    try {
      await show();
    } catch (error) {
      this.shown[name] = null;
      console.warn(`isoflop: ${name}: ${error.message}`);
    }
  }
}
