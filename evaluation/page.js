// The list of questions: filtered, searched, a page at a time, each opened when it is asked for. What models said comes
// in as JSON and goes out as text nodes; nothing here makes HTML of a string.
"use strict";
(() => {
  const A_PAGE = 50;
  const FLAGS = {failed: 1, guessed: 2, cut: 4, withheld: 8, toCome: 16, notAsked: 32, noScore: 64};
  const index = JSON.parse(document.getElementById("index").textContent);
  const lines = (id) => document.getElementById(id).textContent.slice(1, -1).split("\n");
  const rows = lines("rows"), pictures = lines("pictures");
  const several = index.letters.length > 1;

  // Elements

  function make(kind, attributes = {}, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  }
  const faint = (...text) => make("span", {class: "faint"}, ...text);
  const words = (text) => make("pre", {tabindex: 0, dir: "auto"}, text);
  const letterOf = (run) => make("b", {class: "letter"}, index.letters[run]);
  const percent = (score) => (score === 1 ? "right" : score === 0 ? "wrong" : `${(100 * score).toFixed(0)} %`);
  const kindOf = (score) => (score === 1 ? "right" : score === 0 ? "wrong" : "partly");

  function verdict(score, guessed) {
    if (score === null) return faint("no score");  // its answer is not published
    const sign = {right: "✓", wrong: "✗", partly: "◐"}[kindOf(score)];
    return make("span", {class: `verdict ${kindOf(score)}`}, `${sign} ${percent(score)}${guessed ? ", guessed" : ""}`);
  }

  // What the list shows and filters by

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
    controls.search = make("input", {type: "search", placeholder: "words of a question or an answer", autocomplete: "off"});
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

  // The list, a page at a time

  const list = document.getElementById("list"), status = document.getElementById("found"), pager = document.getElementById("pages");
  let shown = [], page = 0;

  async function refresh() {
    const said = chosen.search.trim() ? "Searching …" : "";
    if (said) status.textContent = said;
    const found = await searched(matching());
    if (found === null) return false;
    shown = found;
    page = 0;
    draw();
    return true;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / A_PAGE));
    const own = shown.slice(page * A_PAGE, (page + 1) * A_PAGE);
    list.replaceChildren(...own.map(line));
    const all = index.ids.length;
    const count = shown.length === all ? `${all.toLocaleString("en")} questions` : `${shown.length.toLocaleString("en")} of ${all.toLocaleString("en")} questions`;
    status.textContent = chosen.only ? `${count}: ${index.only[chosen.only].label}` : count;
    const filtered = chosen.only || chosen.search || chosen.run || chosen.state || chosen.groups.some((value) => value !== "");
    controls.clear.disabled = !filtered;
    pager.hidden = pages === 1;
    const [before, here, after] = pager.children;
    before.disabled = page === 0;
    after.disabled = page === pages - 1;
    here.textContent = `Page ${page + 1} of ${pages}`;
  }

  function turn(by) {
    page += by;
    draw();
    status.scrollIntoView();
    // The first summary of the new page: who turns by keyboard goes on reading there.
    list.querySelector("summary")?.focus({preventScroll: true});
  }

  function buildPager() {
    const before = make("button", {type: "button"}, "‹ Previous"), after = make("button", {type: "button"}, "Next ›");
    before.addEventListener("click", () => turn(-1));
    after.addEventListener("click", () => turn(1));
    pager.append(before, make("span", {}), after);
  }

  function line(place) {
    const groups = index.groups.filter((group) => group.of[place] !== null).map((group) => group.values[group.of[place]]);
    const run = index.runs.findIndex((states) => states[place][2]);
    const parse = run < 0 ? "" : index.runs[run][place][2];
    const said = several || !parse ? null : make("bdi", {class: "said"}, parse);
    const truth = index.truths[place] ? make("bdi", {class: "truth"}, index.truths[place]) : null;
    const summary = make("summary", {},
      make("span", {class: "marks"}, index.runs.map((_, one) => mark(one, place))),
      make("bdi", {class: "name"}, index.ids[place]),
      make("span", {class: "answers"}, said && [faint("said "), said], said && truth && " ", truth && [faint("truth "), truth]),
      faint(groups.join(" · ")));
    const details = make("details", {class: "question"}, summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(question(place));
    });
    return details;
  }

  // A question, opened

  function question(place) {
    const row = JSON.parse(rows[place]);
    const asked = row.asked.map((turns, number) => make("div", {class: "asked"},
      row.asked.length > 1 ? make("h4", {}, "Asked in ", row.runs.map((run, one) => (run.asked === number ? letterOf(one) : null))) : null,
      turns.map((turn) => turnOf(turn, turns.length > 1))));
    const link = make("a", {href: `#q:${encodeURIComponent(index.ids[place])}`}, "Link to this question");
    const others = Object.fromEntries(Object.entries(row.truth).filter(([name]) => name !== "answer"));
    const truth = make("div", {class: "known"}, make("h4", {}, "Truth"),
      "answer" in row.truth ? words(plain(row.truth.answer)) : null,
      Object.keys(others).length ? folded("All that the scorer knows", words(JSON.stringify(others, null, 2))) : null);
    return make("div", {class: "opened"},
      make("div", {class: "left"}, asked, truth, make("p", {}, link)),
      make("div", {class: "right-side"}, row.runs.map((run, one) => answersOf(run.answers, one, place, row.truth))));
  }

  const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const folded = (title, ...inside) => make("details", {class: "folded"}, make("summary", {}, title), ...inside);

  // Built when it is opened, as rounds may be large.
  function lazily(title, build, open = false, kind = "folded") {
    const details = make("details", {class: kind, open}, make("summary", {}, title));
    const fill = () => { if (details.open && details.children.length === 1) details.append(build()); };
    details.addEventListener("toggle", fill);
    fill();
    return details;
  }

  function turnOf(turn, named) {
    const parts = typeof turn.content === "string" ? [{type: "text", text: turn.content}] : turn.content;
    return make("div", {}, named ? make("h4", {}, turn.role) : null,
      parts.map((part) => (part.type === "image" ? picture(part.image) : part.type === "text" ? words(part.text) : words(plain(part)))));
  }

  function picture(number) {
    const [width, height, shownWidth, shownHeight, problem] = index.pictures[number];
    if (!pictures[number]) return make("p", {class: "warn"}, `A picture${width ? ` of ${width} × ${height} pixels` : ""} is not shown: ${problem}.`);
    const image = make("img", {loading: "lazy", alt: "The question's picture", width: shownWidth, height: shownHeight});
    if (shownWidth < 200) image.classList.add("small");
    image.src = pictures[number];
    const said = shownWidth < width ? `${width} × ${height} pixels, shown at ${shownWidth} × ${shownHeight}` : `${width} × ${height} pixels`;
    return make("figure", {}, image, make("figcaption", {class: "faint"}, said));
  }

  function answersOf(answers, run, place, truth) {
    const flags = index.runs[run][place][1];
    if (several && flags & FLAGS.notAsked) return null;
    const title = several ? make("h4", {}, letterOf(run), " ", index.titles[run]) : null;
    const none = flags & FLAGS.withheld ? "Withheld, for it has pictures." : "No answer yet.";
    if (!answers.length) return make("section", {class: "run"}, title, make("p", {class: "faint"}, none));
    if (index.samples[run] === 1) return make("section", {class: "run"}, title, answers.map((answer) => answerOf(answer, truth)));
    return make("section", {class: "run"}, title, answers.map((answer, number) => lazily(
      make("span", {}, `Sample ${answer.sample + 1} of ${index.samples[run]} `,
        answer.error ? make("span", {class: "flag failed"}, "failed") : [verdict(answer.score, answer.guessed), " ", make("bdi", {class: "said"}, clip(answer.parsed))]),
      () => answerOf(answer, truth), number === 0)));
  }

  const clip = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

  function answerOf(answer, truth) {
    if (answer.error) return make("div", {class: "answer"}, make("p", {}, make("span", {class: "flag failed"}, "failed")), words(answer.error));
    const facts = [`${answer.tokens[0].toLocaleString("en")} prompt and ${answer.tokens[1].toLocaleString("en")} completion tokens`, `${answer.seconds.toFixed(1)} s`];
    const judged = make("dl", {class: "judged"},
      pair("verdict", verdict(answer.score, answer.guessed)),
      pair("parsed", answer.parsed ? make("bdi", {}, answer.parsed) : faint("nothing")),
      "answer" in truth ? pair("truth", make("bdi", {}, plain(truth.answer))) : null,
      answer.guessed && answer.score !== null ? pair("strict", verdict(0, false)) : null,
      answer.modern === null ? null : pair("math-verify", verdict(answer.modern, false)),
      answer.note ? pair("note", answer.note) : null);
    return make("div", {class: "answer"}, judged,
      make("h5", {}, "Response", answer.finish === "length" ? make("span", {class: "flag cut"}, "cut off") : null),
      answer.response ? words(answer.response) : make("p", {class: "faint"}, "(empty)"),
      answer.reasoning ? lazily(`Reasoning, ${answer.reasoning.length.toLocaleString("en")} characters`, () => words(answer.reasoning)) : null,
      answer.rounds.length ? lazily(`Rounds: ${answer.rounds.map((round) => round.length).join(" → ")} trajectories`, () => tree(answer.rounds), true) : null,
      answer.notes.length ? make("ul", {class: "notes"}, answer.notes.map((note) => make("li", {}, note))) : null,
      make("p", {class: "faint"}, facts.join(", ")));
  }

  const pair = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));

  function tree(rounds) {
    return make("ol", {class: "tree"}, rounds.map((round, number) => {
      const last = number === rounds.length - 1;
      const judged = round.filter((member) => typeof member.score === "number");
      const right = judged.filter((member) => member.score === 1).length;
      const lost = round.filter((member) => member.error || member.cancelled).length;
      const counts = [judged.length && !last ? `${right} of ${judged.length} right` : "", lost ? `${lost} lost` : ""].filter(Boolean);
      return make("li", {}, make("h5", {}, last ? "Synthesis" : `Round ${number + 1} `, faint(counts.join(", "))),
        make("ol", {class: last ? "members last" : "members"}, round.map((member, place) => make("li", {}, memberOf(member, place, last)))));
    }));
  }

  function memberOf(member, place, last) {
    const number = last ? null : faint(`${place + 1} `);
    if (member.cancelled) return make("span", {class: "member cancelled"}, number, "cancelled");
    if (member.error) return lazily(make("span", {}, number, make("span", {class: "flag failed"}, "failed")), () => words(member.error), false, "member failed");
    const known = member.score !== undefined;
    const title = make("span", {}, number, known ? [verdict(member.score, member.guessed), " "] : null,
      make("bdi", {class: "said"}, known ? clip(member.parsed) || "(no answer)" : clip(ending(member.message ?? ""))));
    const facts = `${member.tokens.toLocaleString("en")} tokens${member.finish === "length" ? ", cut off" : ""}`;
    return lazily(title, () => make("div", {},
      member.message === null ? make("p", {class: "faint"}, "Its response is the answer above.") : words(member.message),
      faint(facts)), false, `member ${typeof member.score === "number" ? kindOf(member.score) : ""}`);
  }

  const ending = (message) => message.trim().split("\n").pop();

  // Ways into the list from the rest of the page

  async function open(id) {
    const place = index.ids.indexOf(id);
    if (place < 0) return;
    if (!shown.includes(place)) { clear(); await refresh(); }
    page = Math.floor(shown.indexOf(place) / A_PAGE);
    draw();
    const details = list.children[shown.indexOf(place) % A_PAGE];
    details.open = true;
    details.scrollIntoView();
    details.querySelector("summary").focus({preventScroll: true});
  }

  document.addEventListener("click", async ({target}) => {
    const button = target instanceof Element && target.closest("button[data-question], button[data-only], button[data-group]");
    if (!button) return;
    if (button.dataset.question !== undefined) { open(button.dataset.question); return; }
    clear();
    if (button.dataset.only !== undefined) chosen.only = button.dataset.only;
    else {
      const number = index.groups.findIndex((group) => group.name === button.dataset.group);
      const value = String(index.groups[number].values.indexOf(button.dataset.value));
      chosen.groups[number] = controls.groups[number].value = value;
    }
    await refresh();
    document.getElementById("questions").scrollIntoView();
    list.querySelector("summary")?.focus({preventScroll: true});
  });

  function follow() {
    if (!location.hash.startsWith("#q:")) return;
    let id;
    try { id = decodeURIComponent(location.hash.slice(3)); } catch { return; }
    open(id);
  }

  buildFilters();
  buildPager();
  refresh().then(follow);
  window.addEventListener("hashchange", follow);
})();
