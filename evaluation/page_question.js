// A question, opened: what was asked, what is true, and every answer with its verdict and its rounds.

function question(place) {
  const row = JSON.parse(rows[place]);
  const asked = row.asked.map((turns, number) => make("div", {class: "asked"},
    row.asked.length > 1 ? make("h4", {}, "Asked in ", row.runs.map((run, one) => (run.asked === number ? letterOf(one) : null))) : null,
    turns.map((turn) => turnOf(turn, turns.length > 1))));
  const link = make("a", {href: `#q:${encodeURIComponent(index.ids[place])}`}, `Link to this ${index.noun.slice(0, -1)}`);
  const others = Object.fromEntries(Object.entries(row.truth).filter(([name]) => name !== "answer"));
  const known = Object.keys(row.truth).length > 0;
  const truth = !known ? null : make("div", {class: "known"}, make("h4", {}, "Truth"),
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

function picture(number, alt = `The ${index.noun.slice(0, -1)}'s picture`) {
  const [width, height, shownWidth, shownHeight, problem] = index.pictures[number];
  if (!pictures[number]) return make("p", {class: "warn"}, `A picture${width ? ` of ${width} × ${height} pixels` : ""} is not shown: ${problem}.`);
  const image = make("img", {loading: "lazy", alt, width: shownWidth, height: shownHeight});
  if (shownWidth < 200) image.classList.add("small");
  image.src = pictures[number];
  const said = shownWidth < width ? `${width} × ${height} pixels, shown at ${shownWidth} × ${shownHeight}` : `${width} × ${height} pixels`;
  return make("figure", {}, image, make("figcaption", {class: "faint"}, said));
}

function answersOf(answers, run, place, truth) {
  const flags = index.runs[run][place][1];
  if (several && flags & FLAGS.notAsked) return null;
  const title = several ? make("h4", {}, letterOf(run), " ", index.titles[run]) : null;
  const blind = flags & FLAGS.blind ? make("p", {class: "faint"}, "Asked by the text alone, without the picture.") : null;
  const none = flags & FLAGS.withheld ? "Withheld, for it has pictures." : "No answer yet.";
  if (!answers.length) return make("section", {class: "run"}, title, make("p", {class: "faint"}, none));
  if (index.samples[run] === 1) return make("section", {class: "run"}, title, blind, answers.map((answer) => answerOf(answer, truth)));
  return make("section", {class: "run"}, title, blind, answers.map((answer, number) => lazily(
    make("span", {}, `Sample ${answer.sample + 1} of ${index.samples[run]} `,
      answer.error ? make("span", {class: "flag failed"}, "failed") : [verdict(answer.score, answer.guessed), " ", make("bdi", {class: "said"}, clip(answer.parsed))]),
    () => answerOf(answer, truth), number === 0)));
}

const clip = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

function answerOf(answer, truth) {
  if (answer.picture !== undefined) return editOf(answer);
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

function editOf(answer) {
  const after = picture(answer.picture, "The edited picture");
  if (answer.error) return make("div", {class: "answer"}, after, make("p", {}, make("span", {class: "flag failed"}, "not judged")), words(answer.error));
  return make("div", {class: "answer"}, after,
    make("dl", {class: "judged"}, pair("verdict", verdict(answer.score, false)),
      Object.entries(answer.scores).map(([name, value]) => pair(name, String(Number(value.toFixed(2)))))),
    Object.entries(answer.words).flatMap(([about, said]) => [make("h5", {}, `The judge on ${about}`), words(said)]));
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
