"use strict";
// Draws the figures, in the colours that the reader prefers, and light ones on paper.
(() => {
  const { figures } = JSON.parse(document.getElementById("isoflop-figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
    showSendToCloud: false, // plotly would offer to upload the figure
    plotlyServerURL: "",
  };
  const PAPER = { width: 680, height: 400, autosize: false }; // pixels: two figures fit on a page
  const opened = []; // what was opened for paper

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
      if (paper) Object.assign(figure.layout, PAPER);
      const named = { toImageButtonOptions: { format: "svg", filename: plot.dataset.key } };
      Plotly.react(plot, figure.data, figure.layout, { ...config, ...named });
    }
    document.documentElement.dataset.drawn = paper ? "paper" : "screen";
  };

  draw(false);
  dark.addEventListener("change", () => draw(false));
  window.addEventListener("beforeprint", () => {
    opened.push(...document.querySelectorAll("details:not([open])"));
    for (const details of opened) details.open = true;
    draw(true);
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
    draw(false);
  });
})();
