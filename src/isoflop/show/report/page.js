"use strict";
// Draws the figures, in the colours that the reader prefers, and light ones on paper.
(() => {
  const { figures } = JSON.parse(document.getElementById("isoflop-figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const PAPER = 680; // pixels: a page's width

  // `changes` holds what a dark figure has otherwise, key by key
  const changed = (value, changes) => {
    for (const [key, change] of Object.entries(changes)) {
      const inner = change !== null && typeof change === "object" && !Array.isArray(change);
      value[key] = inner && value[key] !== null && typeof value[key] === "object" ? changed(value[key], change) : change;
    }
    return value;
  };

  const draw = (paper) => {
    for (const plot of document.querySelectorAll(".plot")) {
      const known = figures[plot.dataset.key];
      let figure = structuredClone(known.light);
      if (dark.matches && !paper) figure = changed(figure, known.dark);
      if (paper) Object.assign(figure.layout, { width: PAPER, autosize: false });
      const named = { toImageButtonOptions: { format: "svg", filename: plot.dataset.key } };
      Plotly.react(plot, figure.data, figure.layout, { ...config, ...named });
    }
    document.documentElement.dataset.drawn = paper ? "paper" : "screen";
  };

  draw(false);
  dark.addEventListener("change", () => draw(false));
  window.addEventListener("beforeprint", () => draw(true));
  window.addEventListener("afterprint", () => draw(false));
})();
