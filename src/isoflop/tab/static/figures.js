// The figures: each is asked for when it comes into view, drawn again only where it has changed; a zoom stays.

import {ask, Paced, script} from './api.js';
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
const FIGURE_OF_LOSS = 'loss-flops';
const FIRST = 'isoflop first figure'; // a mark in the page's timeline, for benchmarks/tab.py

export class Figures {
  /** `painted` gets the colour of each run's line, by run_id, when the first figure is drawn. */
  constructor(place, choice, parameters, painted) {
    this.place = place;
    this.choice = choice;
    this.painted = painted;
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
  update(keys, wanted, urgent, losses) {
    for (const key of keys) {
      if (this.cards.has(key)) continue;
      const card = new Card(key, this.choice, this.parameters, this.cards.size ? null : this.painted);
      this.cards.set(key, card);
      this.place.append(card.top);
      this.watcher.observe(card.top);
    }
    for (const card of this.cards.values()) {
      card.wanted = wanted;
      if (card.key === FIGURE_OF_LOSS) card.offer(losses);
      if (card.visible) card.update(urgent);
    }
  }

  /** Whether something in view is older than what there is. */
  get behind() {
    return [...this.cards.values()].some((card) => card.visible && card.paced.done !== card.version());
  }
}

class Card {
  constructor(key, choice, parameters, painted) {
    this.key = key;
    this.choice = choice;
    this.painted = painted;
    this.parameters = parameters;
    this.visible = false;
    this.wanted = null;
    this.digest = '';
    this.pin = choice.pin; // as it was drawn
    this.ends = {}; // of the axes, as the server gave them
    this.paced = new Paced((signal) => this.ask(signal));
    this.title = element('h2', {}, '\u00a0');
    this.plot = element('div', {class: 'plot'});
    this.reason = element('p', {class: 'reason', hidden: true});
    this.notes = element('div', {class: 'notes'});
    this.csv = element('button', {type: 'button', class: 'csv', title: 'the points of this figure', onclick: () => this.save()}, 'CSV');
    this.switches = element('div', {class: 'switches', hidden: key !== FIGURE_OF_LOSS});
    this.x = this.select('against', [['', 'compute, with the frontier if fitted'], ['flops', 'FLOPs, measured'], ['6nd', '6·N·D'], ['tokens', 'tokens'], ['step', 'steps'], ['hours', 'training hours']]);
    this.loss = this.select('loss', [['', 'by default'], ...(choice.loss ? [[choice.loss, choice.loss]] : [])]);
    this.smooth = this.select('smooth', [['', 'no'], ...[2, 5, 10, 20].map((percent) => [String(percent / 100), `mean of the last ${percent}% of steps`])], 'smoothing of training losses');
    this.top = element('section', {class: 'card figure'}, this.csv, this.title, this.switches, this.plot, this.reason, this.notes);
    this.top.dataset.key = key;
  }

  async update(urgent = false) {
    try {
      await this.paced.want(this.version(), urgent);
    } catch (error) {
      this.say(`This figure could not be drawn: ${error.message}`);
    }
  }

  version() {
    return this.wanted && [this.wanted, theme(), this.x.value, this.loss.value, this.smooth.value, this.choice.pin].join(' ');
  }

  /** A labelled choice above the figure, kept with the choice of runs. */
  select(name, options, label = name) {
    const changed = () => {
      for (const each of ['x', 'loss', 'smooth']) this.choice[each] = this[each].value;
      this.choice.keep();
      this.update(true);
    };
    const made = element('select', {onchange: changed, 'aria-label': label}, ...options.map(([value, text]) => element('option', {value}, text)));
    const kept = this.choice[name === 'against' ? 'x' : name];
    if (options.some(([value]) => value === kept)) made.value = kept;
    this.switches.append(element('label', {}, `${name} `, made));
    return made;
  }

  /** The losses that the runs have. */
  offer(losses) {
    const known = [...this.loss.options].map(({value}) => value);
    for (const name of losses) if (!known.includes(name)) this.loss.append(element('option', {value: name}, name));
  }

  /** The chosen axis and loss; nothing where both are the default. A loss alone is drawn against measured FLOPs. */
  switched() {
    if (this.key !== FIGURE_OF_LOSS) return {};
    const [x, loss, smooth] = [this.x.value, this.loss.value, this.smooth.value];
    return {...(x || loss ? {x: x || 'flops', loss} : {}), ...(smooth ? {smooth} : {})};
  }

  async ask(signal) {
    const answer = await ask('./figure', {...this.parameters(), ...this.switched(), key: this.key, theme: theme(), have: this.pin === this.choice.pin ? this.digest : ''}, signal);
    if (answer.unchanged) return;
    this.title.textContent = answer.title;
    const fitting = answer.state === 'fitting'; // then notes would say that no run counts
    show(this.notes, fitting ? '' : (list(answer.notes) ?? ''));
    this.digest = answer.digest;
    this.csv.hidden = !answer.plot;
    this.top.classList.toggle('missing', !answer.plot && !fitting);
    const cards = [...this.top.parentElement.children];
    const same = cards.slice(0, cards.indexOf(this.top)).find(({dataset}) => dataset.reason && dataset.reason === answer.reason);
    this.top.dataset.reason = answer.reason;
    if (!answer.plot) {
      this.plot.hidden = true;
      const why = same ? `The reason is that of “${same.querySelector('h2').textContent}”.` : answer.reason;
      this.say(fitting ? 'Fitting the runs…' : `Not shown. ${why}`);
      return;
    }
    await plotly;
    this.plot.hidden = false;
    this.reason.hidden = true;
    await window.Plotly.react(this.plot, this.pinned(answer.plot.data), this.zoomed(answer.plot.layout), CONFIG);
    if (!performance.getEntriesByName(FIRST).length) requestAnimationFrame(() => performance.mark(FIRST));
    this.top.dataset.drawn = answer.digest;
    this.painted?.(new Map(this.plot._fullData.filter((line) => line.meta?.run_id).map((line) => [line.meta.run_id, line.line?.color ?? line.marker?.color])));
  }

  /** Traces with those of the pinned run thick, and above the others. */
  pinned(traces) {
    this.pin = this.choice.pin;
    const isPinned = ({meta}) => meta && meta.run_id === this.choice.pinned?.run_id;
    const thick = traces.filter(isPinned).map((trace) => (trace.line?.width ? {...trace, line: {...trace.line, width: 4}} : trace));
    return [...traces.filter((trace) => !isPinned(trace)), ...thick];
  }

  /** A layout with the ends of axes that somebody zoomed to. What was hidden in the legend stays by uirevision. */
  zoomed(layout) {
    const made = {...layout, uirevision: 'kept'};
    for (const axis of ['xaxis', 'xaxis2', 'yaxis']) {
      if (!layout[axis]) continue;
      const {range: now, autorange} = this.plot.layout?.[axis] ?? {};
      // by uirevision alone a zoom is lost when a growing run moves the ends that the server gives
      const left = now && !autorange && this.ends[axis] && String(now) !== this.ends[axis];
      this.ends[axis] = String(layout[axis].range);
      if (left) made[axis] = {...layout[axis], range: [...now]};
    }
    return made;
  }

  /** Save the points that the figure shows, one a line. */
  save() {
    const quoted = (text) => `"${String(text ?? '').replaceAll('"', '""')}"`;
    const lines = (this.plot._fullData ?? []).flatMap(({name, x, y}) => [...(x ?? [])].map((at, i) => [quoted(name), at, y?.[i]].join(',')));
    const link = element('a', {download: `${this.key}.csv`});
    link.href = URL.createObjectURL(new Blob([['series,x,y', ...lines, ''].join('\n')], {type: 'text/csv'}));
    link.click();
    URL.revokeObjectURL(link.href);
  }

  say(text) {
    this.reason.textContent = text;
    this.reason.hidden = false;
  }
}
