// The search page. Where it is stands in its address (?query=, ?filter=, ?like=), so Back, reload and a bookmark work.
// Everything shown goes in as text, never as markup.
"use strict";

const LIMIT = 24;
const el = (id) => document.getElementById(id);

let about = null;
let running = null; // the AbortController of the question that is being answered
let adding = false; // more clips are on their way
let shown = 0;
let total = 0;
let dropped = null; // address of the file that is shown, in this browser's memory

function say(text, wrong = false) {
  el("status").textContent = text;
  el("status").classList.toggle("wrong", wrong);
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The search does not answer: is launch/search.py still running?");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `The search answered ${answer.status}.`);
  return found;
}

function state() {
  const asked = new URLSearchParams(location.search);
  return { query: asked.get("query") || "", filter: asked.get("filter") || "", like: asked.get("like") };
}

function go(next) {
  const asked = new URLSearchParams();
  for (const name of ["query", "filter", "like"]) if (next[name]) asked.set(name, next[name]);
  const address = asked.size ? `/?${asked}` : "/";
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  return show();
}

function subject(box, name, items) {
  el("player").replaceChildren(box);
  el("name").textContent = name;
  el("captions").replaceChildren(...items);
  el("subject").hidden = false;
}

function clear() {
  if (running) running.abort();
  running = new AbortController();
  if (dropped) URL.revokeObjectURL(dropped);
  dropped = null;
  for (const video of document.querySelectorAll("video")) {
    watch.unobserve(video);
    video.removeAttribute("src"); // lets go of the connection
    video.load();
  }
  el("clips").replaceChildren();
  el("player").replaceChildren();
  el("subject").hidden = el("more").hidden = true;
  shown = total = 0;
  return running.signal;
}

// --- questions

async function show() {
  const now = state();
  el("query").value = now.query;
  el("filter").value = now.filter;
  document.title = now.query ? `${now.query} - clip search` : "Clip search";
  clear();
  say("Searching");
  scrollTo(0, 0);
  await add();
}

async function add() {
  const { signal } = running;
  const now = state();
  const asked = new URLSearchParams({ start: shown, limit: LIMIT });
  for (const name of ["query", "filter", "like"]) if (now[name]) asked.set(name, now[name]);
  try {
    const found = await ask(`/api/clips?${asked}`, { signal });
    if (found.like && el("subject").hidden) {
      const { like } = found;
      const long = like.seconds === null ? "" : `, ${like.seconds} s`;
      const box = picture(like, `/clips/${like.clip}/video`, true);
      subject(box, `${like.id}${long}`, about && !about.captioned ? [] : like.captions.map((text) => caption(text)));
    }
    el("clips").append(...found.clips.map(card));
    shown += found.clips.length;
    total = found.total;
    el("more").hidden = shown >= total || !found.clips.length;
    say([headline(now), ...found.notes].join(" "));
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function headline(now) {
  const holding = now.filter ? ` with “${now.filter}” in a caption or the name` : "";
  if (!total) {
    if (now.filter) return `No clip${now.like ? " but this one" : ""}${holding}.`;
    return "There is no other clip.";
  }
  const count = `${shown} of ${total} clips${holding}`;
  if (now.like) return `${count}, the most alike first.`;
  if (now.query) return `${count}, those nearest to “${now.query}” first.`;
  return `${count}. Type what they show to have the nearest first.`;
}

async function describe(file) {
  history.pushState(null, "", "/");
  el("query").value = el("filter").value = "";
  document.title = "Clip search";
  const signal = clear();
  if (about && file.size > about.largest_upload) {
    say(`${file.name} is too large: ${about.largest_upload >> 20} MiB are the most.`, true);
    return;
  }
  say(`Looking at ${file.name}`);
  try {
    const found = await ask("/api/captions", { method: "POST", body: file, signal,
      headers: { "Content-Type": "application/octet-stream" } });
    dropped = URL.createObjectURL(file);
    subject(picture(null, dropped, true), file.name, found.captions.map((each) => caption(each.caption, each.score)));
    el("clips").append(...found.clips.map(card));
    const nearest = found.captions.length ? "Its nearest captions, and " : "";
    say([`${nearest}the ${found.clips.length} clips most like ${file.name}.`, ...found.notes].join(" "));
  } catch (error) {
    if (error.name !== "AbortError") say(error.message.replace(/^The file /, `${file.name} `), true);
  }
}

// --- what people do

el("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ query: el("query").value.trim(), filter: el("filter").value.trim() });
});
el("more").addEventListener("click", async () => {
  if (adding) return; // a second click would bring the same clips again
  adding = true;
  await add();
  adding = false;
});
el("leave").addEventListener("click", () => go({ filter: state().filter }));
el("choose").addEventListener("click", () => el("file").click());
el("file").addEventListener("change", () => {
  const [file] = el("file").files;
  if (file) describe(file);
  el("file").value = ""; // the same file may be chosen again
});
addEventListener("popstate", show);

addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) {
    event.preventDefault();
    describe(file);
  }
});
const drags = (event) => event.dataTransfer && event.dataTransfer.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!drags(event)) return;
  event.preventDefault();
  el("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) el("drop").hidden = true;
});
addEventListener("drop", (event) => {
  if (!drags(event)) return;
  event.preventDefault();
  el("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) describe(file);
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement;
  const cards = [...document.querySelectorAll(".clip")];
  const here = cards.indexOf(document.activeElement);
  if (event.key === "/" && !typing) {
    el("query").select();
  } else if (event.key === "Escape") {
    if (typing) return; // clears the field
    if (el("subject").hidden) el("query").select();
    else el("leave").click();
  } else if (event.key === "ArrowDown" && typing && cards.length) {
    cards[0].focus();
  } else if (here >= 0 && event.key.startsWith("Arrow")) {
    const columns = getComputedStyle(el("clips")).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (here + step < 0) el("query").select();
    else cards[Math.min(here + step, cards.length - 1)].focus();
  } else {
    return;
  }
  event.preventDefault();
});

async function start() {
  try {
    about = await ask("/api/about");
    el("about").textContent = `${about.clips} clips of ${about.set}, searched with ${about.model}` +
      (about.kind === "pretrain" ? " (zero-shot: pre-trained, not fine-tuned)." : ".");
    if (about.bad.length) {
      el("bad").hidden = false;
      el("bad").querySelector("summary").textContent =
        about.bad.length === 1 ? "1 video could not be used" : `${about.bad.length} videos could not be used`;
      const items = about.bad.map(({ id, reason }) => make("li", "", `${id}: ${reason}`));
      el("bad").querySelector("ul").replaceChildren(...items);
    }
  } catch (error) {
    say(error.message, true);
    return;
  }
  if (!matchMedia("(pointer: coarse)").matches) el("query").focus(); // on a phone it would bring up the keyboard
  await show();
}

start();
