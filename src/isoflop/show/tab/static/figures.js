// The figures: each is asked for when it comes into view, drawn again only where it has changed; a zoom stays.

import {ask, script} from './api.js';
import {element, list, show} from './dom.js';
import {theme} from './theme.js';

const plotly = script('./plotly.js');
plotly.catch(() => {}); // it is waited for, and told, where a figure is drawn
// plotly 4 has a button that sends a chart to plotly's cloud, shown by default: not here.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: '',
  modeBarButtonsToRemove: ['lasso2d', 'select2d'],
};
const FIRST = 'isoflop first figure'; // a mark in the page's timeline, for benchmarks/tab.py

export class Figures {
  constructor(place, parameters) {
    this.place = place;
    this.parameters = parameters; // which runs, when it is asked
    this.cards = new Map();
    this.watcher = new IntersectionObserver((seen) => {
      for (const {target, isIntersecting} of seen) {
        const card = this.cards.get(target.dataset.key);
        card.visible = isIntersecting;
        if (isIntersecting) card.update();
      }
    }, {rootMargin: '200px'});
  }

  /** What there is to draw: figures' keys, and the version of what they would show. */
  update(keys, wanted) {
    for (const key of keys) {
      if (this.cards.has(key)) continue;
      const card = new Card(key, this.parameters);
      this.cards.set(key, card);
      this.place.append(card.top);
      this.watcher.observe(card.top);
    }
    for (const card of this.cards.values()) {
      card.wanted = wanted;
      if (card.visible) card.update();
    }
  }
}

class Card {
  constructor(key, parameters) {
    this.key = key;
    this.parameters = parameters;
    this.visible = false;
    this.wanted = null;
    this.shown = null; // wanted and theme of what is drawn
    this.digest = '';
    this.asking = null;
    this.title = element('h2', {}, ' ');
    this.plot = element('div', {class: 'plot'});
    this.reason = element('p', {class: 'reason', hidden: true});
    this.notes = element('div', {class: 'notes'});
    this.top = element('section', {class: 'card figure'}, this.title, this.plot, this.reason, this.notes);
    this.top.dataset.key = key;
  }

  async update() {
    const wanted = `${this.wanted} ${theme()}`;
    if (this.wanted === null || wanted === this.shown || (this.asking && this.asking.wanted === wanted)) return;
    this.asking?.abort.abort();
    const asking = {wanted, abort: new AbortController()};
    this.asking = asking;
    try {
      const parameters = {...this.parameters(), key: this.key, theme: theme(), have: this.digest};
      const answer = await ask('./figure', parameters, asking.abort.signal);
      if (answer.unchanged !== true) await this.draw(answer);
      if (this.asking === asking) this.shown = wanted;
    } catch (error) {
      if (error.name !== 'AbortError') this.say(`This figure could not be drawn: ${error.message}`);
    } finally {
      if (this.asking === asking) this.asking = null;
    }
  }

  async draw(answer) {
    this.title.textContent = answer.title;
    if (answer.plot) {
      await plotly;
      this.plot.hidden = false;
      this.reason.hidden = true;
      // what somebody zoomed into stays while uirevision is the same
      await window.Plotly.react(this.plot, answer.plot.data, {...answer.plot.layout, uirevision: 'kept'}, CONFIG);
      if (!performance.getEntriesByName(FIRST).length) requestAnimationFrame(() => performance.mark(FIRST));
      this.top.dataset.drawn = answer.digest;
    } else {
      this.say(answer.state === 'fitting' ? 'Fitting the runs…' : `Not shown: ${answer.reason}`);
    }
    this.digest = answer.digest;
    show(this.notes, list(answer.notes) ?? '');
  }

  say(text) {
    this.reason.textContent = text;
    this.reason.hidden = false;
    if (!this.digest || text.startsWith('Not shown')) this.plot.hidden = true;
  }
}
