"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const element = (name, text = "", attributes = {}) => {
  const made = document.createElement(name);
  made.append(text);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const shown = (value) => typeof value !== "number" ? String(value ?? "–") : Number.isInteger(value) ? String(value) : String(+value.toPrecision(6));
const anchor = (paper, run) => `run:${paper}:${run}`;

// The theme: what the system says, until somebody chooses.
const theme = document.getElementById("theme");
const themes = { auto: "light dark", light: "light", dark: "dark" };
const wear = (name) => {
  document.documentElement.style.colorScheme = themes[name];
  theme.querySelector("b").textContent = name;
};
const kept = (value) => {
  try {
    if (value) localStorage.setItem("kdbench-theme", value);
    return localStorage.getItem("kdbench-theme");
  } catch { // a browser may forbid a file to keep anything
    return null;
  }
};
theme.hidden = false;
wear(Object.hasOwn(themes, kept() ?? "") ? kept() : "auto");
theme.addEventListener("click", () => {
  const names = Object.keys(themes);
  const next = names[(names.indexOf(theme.querySelector("b").textContent) + 1) % names.length];
  wear(next);
  kept(next);
});

// Sorting: a button in each heading.
for (const button of all(".sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table"), body = table.tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[heading.cellIndex].dataset.sort ?? row.cells[heading.cellIndex].textContent.trim();
    const compare = button.dataset.kind !== "text" ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b), "en");
    for (const each of all("thead th[aria-sort]", table)) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
  });
}

// Filters: words, a family, verdicts.
const form = document.querySelector(".filters");
const articles = new Map(all("article.paper").map((each) => [each.dataset.paper, each]));
const texts = new Map([...articles].map(([paper, each]) => [paper, `${paper} ${each.textContent}`.toLowerCase()]));
const filter = () => {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const family = document.getElementById("family").value;
  const verdicts = all('.toggle[aria-pressed="true"]').map((each) => each.dataset.verdict);
  const fits = (paper) => {
    const { dataset } = articles.get(paper);
    return words.every((word) => texts.get(paper).includes(word))
      && (!family || dataset.family.split(" ").includes(family))
      && (!verdicts.length || verdicts.some((each) => dataset.verdicts.split(",").includes(each)));
  };
  const kept = new Set([...articles.keys()].filter(fits));
  for (const each of all("article.paper, #papers tbody tr")) each.hidden = !kept.has(each.dataset.paper);
  for (const each of all("#claims tbody tr")) {
    each.hidden = !kept.has(each.dataset.paper) || (verdicts.length > 0 && !verdicts.includes(each.dataset.verdict));
  }
  const claims = all("#claims tbody tr:not([hidden])").length;
  document.getElementById("found").textContent = `${kept.size} of ${articles.size} papers, ${claims} claims`;
  document.getElementById("empty").hidden = kept.size > 0;
};
form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", filter);
for (const toggle of all(".toggle")) {
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") !== "true"));
    filter();
  });
}
filter();

// Records: one folded entry a run, its inside made when it is opened.
const record = (paper, place) => {
  const [own, parents, fact, shape, values] = data[paper].records[place];
  return { own, parents, facts: data[paper].facts[fact], metrics: data[paper].names[shape].map((name, at) => [name, values[at]]) };
};
const runLink = (paper, run) => {
  const name = typeof run === "number" ? data[paper].runs[run] : run;
  const link = element("a", name, { href: `#${anchor(paper, name)}` });
  return data[paper].runs.includes(name) ? link : element("span", name);
};
const rows = (head, lines, caption) => {
  const table = element("table"), body = element("tbody"), top = element("tr");
  const kind = (each) => typeof each === "string" ? { class: "number" } : {};
  top.append(...head.map((each, at) => element("th", each, { scope: "col", ...(at && lines.length ? kind(lines[0][at]) : {}) })));
  for (const line of lines) {
    const row = element("tr");
    row.append(...line.map((each, at) => element(at ? "td" : "th", each, at ? kind(each) : { scope: "row" })));
    body.append(row);
  }
  const head_ = element("thead");
  head_.append(top);
  table.append(element("caption", caption, { class: "hidden" }), head_, body);
  return table;
};
const details = (paper, place) => {
  const { own, parents, facts, metrics } = record(paper, place);
  const list = element("dl"), box = element("div", "", { class: "record" }), table = element("div", "", { class: "scroll" });
  const fact = (name, value) => list.append(element("dt", name), element("dd", value));
  for (const [name, value] of Object.entries(own)) fact(name.replaceAll("_", " "), shown(value));
  for (const [name, told] of Object.entries(facts)) {
    fact(name, Object.entries(told).map(([key, value]) => `${key.replaceAll("_", " ")} ${value ?? "–"}`).join(", "));
  }
  for (const [name, run] of Object.entries(parents)) fact(`from: ${name}`, runLink(paper, run));
  table.append(rows(["metric", "value"], metrics.map(([name, value]) => [name, shown(value)]), "All metrics of the run"));
  box.append(list, table);
  return box;
};
const unfold = (section) => {
  if (section.dataset.made) return;
  section.dataset.made = "yes";
  const { paper } = section.closest("article").dataset;
  data[paper].runs.forEach((run, place) => {
    const { own } = record(paper, place);
    const entry = element("details", "", { class: "run", id: anchor(paper, run) });
    const summary = element("summary");
    summary.append(element("code", run), ` seed ${own.seed}, ${own.steps} steps, ${own.seconds} s`);
    entry.append(summary);
    entry.addEventListener("toggle", () => { if (entry.open && entry.children.length < 2) entry.append(details(paper, place)); });
    section.append(entry);
  });
};
for (const section of all("details.records")) section.addEventListener("toggle", () => section.open && unfold(section));
const follow = () => {
  const name = decodeURIComponent(location.hash.slice(1));
  const section = name.startsWith("run:") ? document.getElementById(`records.${name.split(":")[1].replaceAll("/", ".")}`) : document.getElementById(name);
  if (!section?.matches("details.records")) return;
  unfold(section);
  section.open = true;
  const entry = document.getElementById(name);
  if (!entry) return;
  if (entry.matches(".run")) {
    entry.open = true;
    if (entry.children.length < 2) entry.append(details(...place(name)));
  }
  entry.scrollIntoView();
  entry.querySelector("summary").focus({ preventScroll: true });
};
const place = (name) => {
  const [, paper, run] = name.split(":");
  return [paper, data[paper].runs.indexOf(run)];
};
addEventListener("hashchange", follow);
follow();

// A number opens the list of its runs.
const panel = document.getElementById("panel");
const open = (title, note, table) => {
  document.getElementById("panel-title").textContent = title;
  document.getElementById("panel-note").textContent = note;
  document.getElementById("panel-body").replaceChildren(table);
  panel.showModal();
  document.getElementById("panel-body").scrollTo(0, 0);
};
const value = (metrics, key) => {
  const found = Object.fromEntries(metrics);
  return found[`test/${key}`] ?? found[key];
};
const ofNumber = (link, paper) => {
  const row = link.closest("tr"), heads = link.closest("table").tHead.rows[0].cells;
  const { key } = link.dataset, scale = Number(link.dataset.scale);
  const lines = link.dataset.of.split(" ").map((each) => {
    const cut = each.lastIndexOf(":"), run = Number(each.slice(cut + 1));
    const { own, metrics } = record(paper, run);
    const found = key.startsWith("run/") ? own[key.slice(4)] : value(metrics, key);
    return [each.slice(0, cut), shown(typeof found === "number" ? +(found * scale).toPrecision(6) : found), shown(own.steps), shown(own.seconds), runLink(paper, run)];
  });
  const name = row.cells[0].firstChild.textContent, column = heads[link.closest("td").cellIndex].firstChild.textContent;
  open(`${name}, ${column}: ${link.textContent}`, `${key}${scale === 1 ? "" : `, times ${scale}`}`, rows(["seed", "value", "steps", "seconds", "run"], lines, "Runs of this number"));
};
const ofEvidence = (link, paper) => {
  const lines = data[paper].evidence[link.dataset.evidence].map(([pair, values, runs]) => {
    const links = element("span");
    runs.forEach((run) => links.append(runLink(paper, run), document.createElement("br")));
    return [pair, values.map(shown).join(", "), links];
  });
  open(link.dataset.title, link.querySelector("span").textContent, rows(["pair", link.dataset.what, "runs"], lines, "Pairs and their runs"));
};
document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link?.matches(".n, .evidence")) {
    event.preventDefault();
    (link.matches(".n") ? ofNumber : ofEvidence)(link, link.closest("article").dataset.paper);
  } else if (link?.closest("dialog")) {
    panel.close();
    if (link.hash === location.hash) follow();
  } else if (event.target === panel) {
    panel.close();
  }
});
