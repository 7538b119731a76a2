"use strict";
// One tooltip for tokens, cells and curves. Text enters it as text, never as markup.
const tooltip = document.getElementById("tooltip");
const signed = (text) => (text[0] === "-" ? "−" + text.slice(1) : "+" + text);
const minus = (text) => text.replace("-", "−");

function show(text, x, y) {
  tooltip.textContent = text;
  tooltip.classList.add("shown");
  const box = tooltip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x - box.width / 2), document.documentElement.clientWidth - box.width - 8);
  const top = y - box.height - 10 < 8 ? y + 22 : y - box.height - 10;
  tooltip.style.transform = `translate(${Math.max(8, left)}px, ${top}px)`;
}
// What is pointed at may move under a scroll, the one that brings a focused token into view included.
let refresh = null;
function hold(place) { refresh = place; place(); }
function hide() { refresh = null; tooltip.classList.remove("shown"); }
document.addEventListener("scroll", () => { if (refresh) refresh(); }, { passive: true, capture: true });

function describe(element) {
  if (!element.classList.contains("token")) return element.dataset.tip;
  const chance = (logprob) => {
    const p = Math.exp(Number(logprob));
    return Number.isFinite(p) ? ` (p = ${p < 0.001 ? p.toExponential(1) : p.toFixed(3)})` : "";
  };
  const { sft, reference, reward } = element.dataset;
  const name = element.closest(".margins") ? "margin" : element.closest(".audit, .rollouts") ? "reward" : "r̂";
  const total = `“${element.textContent}”\n${name} ${signed(reward)} nats`;
  if (sft === undefined) return total;
  return `${total}\nlog π_SFT ${minus(sft)}${chance(sft)}\nlog π_ref ${minus(reference)}${chance(reference)}`;
}
const target = (event) => (event.target instanceof Element ? event.target.closest(".token, [data-tip]") : null);
function point(element) {
  hold(() => {
    const box = element.getBoundingClientRect();
    if (box.bottom < 0 || box.top > window.innerHeight) hide();
    else show(describe(element), box.left + box.width / 2, box.top);
  });
}
document.addEventListener("pointerover", (event) => { const element = target(event); if (element) point(element); });
document.addEventListener("pointerout", (event) => { if (target(event)) hide(); });
document.addEventListener("focusin", (event) => { const element = target(event); if (element) point(element); });
document.addEventListener("focusout", hide);

// Arrow keys walk through the tokens of a response: one stop of the tab key each.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hide();
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !(event.target instanceof Element) || !event.target.classList.contains("token")) return;
  const all = [...event.target.parentElement.querySelectorAll(".token")];
  const next = all[all.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

// The values of all curves of a panel at the step under the pointer.
for (const plot of document.querySelectorAll(".plot[data-hover]")) {
  const { over, x: [low, high], series } = JSON.parse(plot.dataset.hover);
  const names = JSON.parse(plot.dataset.names);
  const { left, right } = plot.dataset;
  const cursor = plot.querySelector(".cursor");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const width = plot.viewBox.baseVal.width;
    const place = ((event.clientX - box.left) / box.width) * width;
    const wanted = low + ((place - left) / (width - left - right)) * (high - low);
    const near = series.map((points) => points.reduce(
      (best, item) => (!best || Math.abs(item[0] - wanted) < Math.abs(best[0] - wanted) ? item : best), null));
    const first = near.filter(Boolean).sort((a, b) => Math.abs(a[0] - wanted) - Math.abs(b[0] - wanted))[0];
    if (!first) return;
    const x = Number(left) + ((first[0] - low) / (high - low)) * (width - left - right);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    const lines = near.map((item, index) => (item ? `${names[index]} ${minus(String(Number(item[1].toPrecision(4))))}` : "")).filter(Boolean);
    hold(() => {
      const now = plot.getBoundingClientRect();
      show(`${over} ${over === "step" ? Math.round(first[0]) : first[0]}\n${lines.join("\n")}`, now.left + (x / width) * now.width, now.top + 12);
    });
  });
  plot.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; hide(); });
}

// The filter reads prompts and responses, not headings; the select keeps what its value is said of.
for (const browser of document.querySelectorAll(".browser")) {
  const filter = browser.querySelector(".filter");
  const which = browser.querySelector(".which");
  const count = browser.querySelector(".count");
  const samples = [...browser.querySelectorAll(".sample")].map((element) => ({
    element,
    facts: (element.dataset.is || "").split("|"),
    text: [...element.querySelectorAll(".prompt, .tokens")].map((part) => part.textContent).join("\n").replaceAll("↵", " ").toLowerCase(),
  }));
  const update = () => {
    const wanted = filter.value.trim().toLowerCase();
    let shown = 0;
    for (const { element, facts, text } of samples) {
      const kept = text.includes(wanted) && (!which || which.value === "all" || facts.includes(which.value));
      element.hidden = !kept;
      shown += kept;
    }
    count.textContent = `${shown} of ${samples.length}`;
  };
  filter.addEventListener("input", update);
  if (which) which.addEventListener("change", update);
  update();
  for (const box of browser.querySelectorAll(".policies input")) {
    const toggle = () => {
      for (const side of browser.querySelectorAll(".side")) if (side.dataset.policy === box.value) side.hidden = !box.checked;
    };
    box.addEventListener("change", toggle);
    toggle();
  }
}

// The page of an audit: order, marks, keys, and a download of the marked rows. Nothing leaves the browser.
for (const audit of document.querySelectorAll(".audit")) {
  const list = audit.querySelector(".rows");
  const rows = [...list.querySelectorAll(".sample")];
  const order = audit.querySelector(".order");
  const button = audit.querySelector(".export");
  const box = (row) => row.querySelector("input[type=checkbox]");
  const marked = () => [...list.querySelectorAll(".sample")].filter((row) => box(row).checked);
  let exported = "";
  const columns = ["file", "row", "hash", "token", "reward", "loss_spans"];
  const ordered = (row) => Object.fromEntries(columns.map((name) => [name, row[name]]));
  const lines = () => marked().map((row) => JSON.stringify(ordered(JSON.parse(row.dataset.row))) + "\n").join("");
  const sort = () => {
    const key = order.value;
    list.append(...[...rows].sort((a, b) => Number(a.dataset[key]) - Number(b.dataset[key])));
  };
  const update = () => {
    const count = marked().length;
    for (const row of rows) row.classList.toggle("wrong", box(row).checked);
    button.disabled = count === 0;
    audit.querySelector(".marked").textContent = `${count || "none"} marked wrong`;
  };
  order.addEventListener("change", sort);
  list.addEventListener("change", update);
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    exported = lines();
    link.href = URL.createObjectURL(new Blob([exported], { type: "application/x-ndjson" }));
    link.download = "flagged.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.matches("input[type=search], select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !["j", "k", "x"].includes(event.key)) return;
    const visible = [...list.querySelectorAll(".sample:not([hidden])")];
    const current = visible.indexOf(event.target.closest?.(".sample"));
    event.preventDefault();
    if (event.key === "x") {
      if (current >= 0) box(visible[current]).click();
      return;
    }
    const next = visible[current < 0 ? 0 : current + (event.key === "j" ? 1 : -1)];
    if (next) next.focus();
  });
  window.addEventListener("beforeunload", (event) => { if (lines() !== exported) event.preventDefault(); });
  sort();
  update();
}
