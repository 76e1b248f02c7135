// How clips and captions look. Everything shown goes in as text, never as markup.
"use strict";

const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      if (!target.src) target.src = target.dataset.src;
      if (!calm) target.play().catch(() => {}); // a browser that wants a click first shows the first frame
    } else {
      target.pause();
    }
  }
}, { rootMargin: "150px" });

function picture(clip, source, controls) {
  const box = make("span", "picture");
  const video = make("video");
  Object.assign(video, { muted: true, loop: true, playsInline: true, preload: "metadata", controls });
  video.dataset.src = source;
  video.addEventListener("error", () => still(box, clip), { once: true });
  box.append(video);
  watch.observe(video);
  return box;
}

// What a browser cannot play is shown as one frame, and the reason is said.
async function still(box, clip) {
  const note = make("span", "note", "loading a picture");
  box.replaceChildren(note);
  if (!clip) {
    note.textContent = "This browser cannot play the file.";
    return;
  }
  try {
    const answer = await fetch(`/clips/${clip.clip}/poster`);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const image = make("img");
    image.alt = "";
    image.src = URL.createObjectURL(await answer.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    note.textContent = `One frame: this browser cannot play the file (${clip.codec}).`;
    box.prepend(image);
  } catch (error) {
    note.textContent = error instanceof TypeError ? "The search does not answer." : error.message;
  }
}

const score = (value) => make("span", "score", value.toFixed(3));

function card(clip) {
  const item = make("li");
  const button = make("button", "clip");
  button.type = "button";
  button.dataset.clip = clip.clip;
  button.title = "Clips like this";
  const words = make("span", "words");
  const line = make("span", "line");
  line.append(make("span", "rank", `${clip.rank}`));
  if (clip.score !== null) line.append(score(clip.score));
  words.append(line, make("span", "caption", clip.captions[0]));
  if (clip.captions.length > 1) words.append(make("span", "others", `and ${clip.captions.length - 1} more captions`));
  button.append(picture(clip, `/clips/${clip.clip}/video`, false), words);
  button.addEventListener("click", () => go({ filter: state().filter, like: String(clip.clip) }));
  item.append(button);
  return item;
}

function caption(text, value) {
  const item = make("li");
  const button = make("button");
  button.type = "button";
  button.title = "Search for this";
  if (value !== undefined) button.append(score(value));
  button.append(make("span", "", text));
  button.addEventListener("click", () => go({ query: text, filter: state().filter }));
  item.append(button);
  return item;
}
