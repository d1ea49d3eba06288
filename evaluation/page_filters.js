// What the list shows and filters by, and the search in all that was asked and said.

const STATES = {
  right: ["right", ([score]) => score === 1],
  wrong: ["wrong", ([score]) => score === 0],
  partly: ["partly right", ([score]) => score !== null && score > 0 && score < 1],
  failed: ["failed", (state) => state[1] & FLAGS.failed],
  guessed: ["guessed", (state) => state[1] & FLAGS.guessed],
  cut: ["cut off", (state) => state[1] & FLAGS.cut],
  withheld: ["withheld", (state) => state[1] & FLAGS.withheld],
  toCome: ["to come", (state) => state[1] & FLAGS.toCome],
  noScore: ["without a score", (state) => state[1] & FLAGS.noScore],
  blind: ["asked without its picture", (state) => state[1] & FLAGS.blind],
  notAsked: ["not of this run", (state) => state[1] & FLAGS.notAsked],
};

function mark(run, place) {
  const [score, flags] = index.runs[run][place];
  const parts = score === null ? [] : [verdict(score, false)];
  for (const name of ["failed", "guessed", "cut", "withheld", "toCome", "noScore", "notAsked"]) {
    if (flags & FLAGS[name]) parts.push(make("span", {class: `flag ${name}`}, STATES[name][0]));
  }
  return make("span", {class: "mark"}, several ? letterOf(run) : null, ...parts);
}

const filters = document.getElementById("filters");
const chosen = {search: "", run: "", state: "", groups: index.groups.map(() => ""), only: ""};
const controls = {};

function labelled(text, control, wide = false) {
  control.id = `filter-${filters.children.length}`;
  filters.append(make("div", {class: wide ? "filter wide" : "filter"}, make("label", {for: control.id}, text), control));
  return control;
}

function select(label, options, change) {
  const box = make("select", {}, options.map(([value, text]) => make("option", {value}, text)));
  box.addEventListener("change", () => { change(box.value); refresh(); });
  return labelled(label, box);
}

function buildFilters() {
  controls.search = make("input", {type: "search", placeholder: index.noun === "edits" ? "words of an edit or the judge" : "words of a question or an answer", autocomplete: "off"});
  labelled("Search", controls.search, true);
  let timer = 0;
  controls.search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { chosen.search = controls.search.value; refresh(); }, 200);
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  if (several) {
    const runs = index.letters.map((name, run) => [String(run), `${name} ${index.titles[run]}`]);
    controls.run = select("In", [["", "any run"], ...runs], (value) => { chosen.run = value; });
  }
  const met = Object.entries(STATES).filter(([, [, is]]) => index.runs.some((states) => states.some(is)));
  const states = met.map(([name, [text]]) => [name, text]);
  controls.state = select("That is", [["", "anything"], ...states], (value) => { chosen.state = value; });
  controls.groups = index.groups.map((group, number) => {
    const values = group.values.map((text, place) => [String(place), text]);
    values.sort((a, b) => a[1].localeCompare(b[1], "en", {numeric: true}));
    return select(group.name, [["", "all"], ...values], (value) => { chosen.groups[number] = value; });
  });
  controls.clear = make("button", {type: "button"}, "Show all");
  controls.clear.addEventListener("click", () => { clear(); refresh(); });
  filters.append(controls.clear);
}

function clear() {
  Object.assign(chosen, {search: "", run: "", state: "", groups: index.groups.map(() => ""), only: ""});
  for (const control of [controls.search, controls.run, controls.state, ...controls.groups]) if (control) control.value = "";
}

function matching() {
  const only = chosen.only && new Set(index.only[chosen.only].ids);
  const runs = chosen.run === "" ? index.runs : [index.runs[Number(chosen.run)]];
  const is = chosen.state && STATES[chosen.state][1];
  const groups = chosen.groups.map((value, number) => [value, index.groups[number]]).filter(([value]) => value !== "");
  return index.ids.map((_, place) => place).filter((place) =>
    (!only || only.has(index.ids[place]))
    && groups.every(([value, group]) => group.of[place] === Number(value))
    && (is ? runs.some((states) => is(states[place])) : runs.some((states) => !(states[place][1] & FLAGS.notAsked))));
}

// Search reads every row anew, as to keep them all would cost a phone its memory; a later search ends an earlier one.

function* texts(value) {
  if (typeof value === "string") yield value;
  else if (value !== null && typeof value === "object") for (const own of Object.values(value)) yield* texts(own);
}

function says(place, wanted) {
  if (index.ids[place].toLowerCase().includes(wanted)) return true;
  for (const group of index.groups) {
    if (group.of[place] !== null && group.values[group.of[place]].toLowerCase().includes(wanted)) return true;
  }
  for (const text of texts(JSON.parse(rows[place]))) if (text.toLowerCase().includes(wanted)) return true;
  return false;
}

let search = 0;

async function searched(places) {
  const mine = ++search, wanted = chosen.search.trim().toLowerCase(), found = [];
  if (!wanted) return places;
  let since = performance.now();
  for (const place of places) {
    if (says(place, wanted)) found.push(place);
    if (performance.now() - since > 40) {
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== search) return null;
      since = performance.now();
    }
  }
  return found;
}
