/* Charts from the JSON in the panels, and panels that are looked at again while they are seen. */
"use strict";

const PALETTE = [
  "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F",
];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

/* Charts */

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function theme() {
  const axis = {
    axisLabel: { color: colour("--quiet") },
    nameTextStyle: { color: colour("--quiet") },
    axisLine: { lineStyle: { color: colour("--line") } },
    splitLine: { lineStyle: { color: colour("--line") } },
  };
  return {
    color: PALETTE,
    backgroundColor: "transparent",
    textStyle: { color: colour("--text"), fontFamily: "system-ui, sans-serif" },
    label: { color: colour("--text") },
    legend: { textStyle: { color: colour("--text") } },
    visualMap: { textStyle: { color: colour("--text") } },
    categoryAxis: axis,
    valueAxis: axis,
    logAxis: axis,
    timeAxis: axis,
    tooltip: {
      backgroundColor: colour("--card"),
      borderColor: colour("--line"),
      textStyle: { color: colour("--text") },
    },
  };
}

/* An element and no markup: a string would be read as HTML, whose styles the page forbids. */
function tip(items, option) {
  const box = document.createElement("div");
  box.className = "tip";
  for (const item of [items].flat()) {
    const data = detail(item, option);
    const value = Array.isArray(item.value) ? item.value.join(", ") : item.value;
    for (const line of data.tip ?? [[item.name, value].filter((part) => part !== "").join(": ")]) {
      box.append(Object.assign(document.createElement("div"), { textContent: line }));
    }
    if (isAddress(data.picture)) {
      box.append(Object.assign(document.createElement("img"), { src: data.picture, alt: "" }));
    }
  }
  return box;
}

/* Of many points each is an array, whose last value is the task that its series' addresses name. */
function detail(item, option) {
  if (!Array.isArray(item.data)) {
    return item.data ?? {};
  }
  const series = option.series[item.seriesIndex];
  const id = item.data.at(-1);
  const filled = (text) => text?.replace("{id}", id);
  return {
    tip: series.tip && [series.tip, `task ${id}`],
    href: filled(series.href),
    picture: filled(series.picture),
  };
}

function isAddress(text) {
  return typeof text === "string" && /^(https?:\/\/|\/(?!\/))/.test(text);
}

const pen = document.createElement("canvas").getContext("2d");

/* A name as wide as fits: of a path its end is the choice itself, so it loses what is in between. */
function shortened(name, width) {
  pen.font = "12px system-ui, sans-serif";
  const signs = [...name];
  let text = name;
  for (let kept = signs.length - 1; kept > 2 && pen.measureText(text).width > width; kept--) {
    const front = Math.floor(kept / 3);
    text = `${signs.slice(0, front).join("")}…${signs.slice(front - kept).join("")}`;
  }
  return text;
}

async function draw(element) {
  const { source } = element.dataset;
  const option = source ? await fetched(source) : JSON.parse(element.nextElementSibling.textContent);
  // Another swap, or another choice of colours, may have come first.
  if (!element.isConnected || source !== element.dataset.source) {
    return;
  }
  echarts.getInstanceByDom(element)?.dispose();
  element.style.height = `${Number(element.dataset.height)}px`;
  const chart = echarts.init(element, theme(), { renderer: "canvas" });
  option.animation = false;
  option.aria = { enabled: true, label: { enabled: false }, decal: { show: option.series.length > 1 } };
  if (option.tooltip) {
    Object.assign(option.tooltip, { confine: true, renderMode: "html", formatter: (items) => tip(items, option) });
  }
  for (const { axisLabel } of [option.xAxis, option.yAxis].filter((axis) => axis?.axisLabel?.width)) {
    // ECharts adds up the widths of single signs, and would cut what is only just narrow enough.
    axisLabel.formatter = (name) => shortened(name, 0.95 * axisLabel.width);
  }
  for (const series of option.series) {
    if (series.label) {
      series.label.color = colour("--text");
    }
  }
  chart.setOption(option);
  chart.on("click", (item) => {
    const { href, button } = detail(item, option);
    if (isAddress(href)) {
      window.open(href, "_blank", "noopener");
    } else if (button) {
      document.getElementById(button)?.click();
    }
  });
  new ResizeObserver(() => !chart.isDisposed() && chart.resize()).observe(element);
}

async function fetched(source) {
  const answer = await fetch(source);
  return answer.ok ? answer.json() : { series: [] };
}

/* Which of several sources a chart has is chosen beside it. */
document.addEventListener("change", ({ target }) => {
  const chart = document.getElementById(target.dataset?.sourceOf);
  if (chart) {
    chart.dataset.source = target.value;
    draw(chart);
  }
});

function charts(within) {
  return within.querySelectorAll("[data-chart]");
}

function drop(within) {
  for (const element of charts(within)) {
    echarts.getInstanceByDom(element)?.dispose();
  }
}

dark.addEventListener("change", () => {
  drop(document);
  charts(document).forEach(draw);
});

/* Panels */

const lastLook = new WeakMap();
const lastAnswer = new WeakMap();

function panels() {
  return document.querySelectorAll("[data-panel]");
}

function panelOf(event) {
  return event.target.closest?.("[data-panel]");
}

function lookAgain(everyPanel) {
  if (document.visibilityState !== "visible") {
    return;
  }
  for (const panel of panels()) {
    const every = Number(panel.dataset.seconds) * 1000;
    // One that was never loaded waits until it is in sight.
    const last = lastLook.get(panel) ?? ("loaded" in panel.dataset ? 0 : undefined);
    if (last !== undefined && (everyPanel || (every > 0 && performance.now() - last >= every))) {
      htmx.trigger(panel, "again");
    }
  }
}

setInterval(() => lookAgain(false), 500);
document.addEventListener("visibilitychange", () => lookAgain(false));
document.addEventListener("refresh-panels", () => lookAgain(true));

function tell(panel, problem) {
  const note = panel.querySelector(".problem");
  if (note.textContent !== problem) {
    note.textContent = problem;
  }
  note.hidden = problem === "";
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("[data-panel]")) {
    lastLook.set(event.target, performance.now());
  }
});

/* What has not changed stays: the focus, what is opened and where it is scrolled to with it. */
document.addEventListener("htmx:beforeSwap", (event) => {
  const panel = panelOf(event);
  const { xhr, requestConfig } = event.detail;
  if (!panel || !requestConfig.elt.matches("[data-panel]") || xhr.status !== 200) {
    return;
  }
  tell(panel, "");
  if (lastAnswer.get(panel) === xhr.responseText) {
    event.detail.shouldSwap = false;
    return;
  }
  lastAnswer.set(panel, xhr.responseText);
  panel.hadFocus = panel.contains(document.activeElement);
  panel.opened = [...panel.querySelectorAll("details[open]")].map((details) => details.id);
  panel.chosen = [...panel.querySelectorAll("select[id]")].map(({ id, selectedIndex }) => [id, selectedIndex]);
  drop(panel);
});

document.addEventListener("htmx:afterSwap", (event) => {
  const panel = panelOf(event);
  for (const id of panel?.opened ?? []) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  for (const [id, place] of panel?.chosen ?? []) {
    choose(document.getElementById(id), place);
  }
  // Where the button is gone that was pressed, the keyboard goes on from its panel.
  if (panel?.hadFocus && document.activeElement === document.body) {
    panel.focus();
  }
  charts(event.target).forEach(draw);
  tellTimes(event.target);
});

function choose(select, place) {
  if (select && place < select.options.length) {
    select.selectedIndex = place;
    const chart = document.getElementById(select.dataset.sourceOf);
    if (chart) {
      chart.dataset.source = select.value;
    }
  }
}

function sentence(xhr) {
  const parsed = new DOMParser().parseFromString(xhr.responseText, "text/html");
  return parsed.body.textContent.trim() || `error ${xhr.status}`;
}

document.addEventListener("htmx:responseError", ({ target, detail }) => {
  say(target, `${sentence(detail.xhr)} (trying again)`, sentence(detail.xhr));
});
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, ({ target }) => {
    const problem = "the backend does not answer";
    say(target, `${problem} (trying again)`, `${problem}: press again in a moment`);
  });
}

/* A panel that failed says so above what it showed before; a button says so where buttons speak. */
function say(element, ofPanel, ofButton) {
  if (element.matches("[data-panel]")) {
    tell(element, ofPanel);
  } else {
    document.getElementById("said").textContent = ofButton;
  }
}

function tellTimes(within) {
  for (const time of within.querySelectorAll("time[data-time]")) {
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

tellTimes(document);
