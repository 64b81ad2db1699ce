// Fetches the reference, with a key where the server wants one, and puts it into the page.

const KEY = "dipole-key"; // where the dashboard has it too
const ROOT = new URL("../", import.meta.url);
const $ = (id) => document.getElementById(id);

async function load() {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(new URL("docs/content", ROOT), { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (response.status === 401) return askForKey(key !== null);
  if (!response.ok) return say(`The server answered ${response.status}.`);
  const content = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const example of content.querySelectorAll(".example")) {
    example.textContent = example.textContent.replace(/https?:\/\/localhost(:\d+)?/, ROOT.href.replace(/\/$/, ""));
  }
  $("content").replaceChildren(...content.body.children);
  $("gate").hidden = true;
  document.querySelector(".filter").hidden = false;
  // the browser looked for it before it was there
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

function askForKey(refused) {
  say(refused ? "The server does not know that key." : "");
  $("key-form").hidden = false;
  $("key").focus();
}

function say(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = text === "";
}

const run = () => load().catch(() => say("The server does not answer; load the page again when it does."));

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  run();
});

$("filter").addEventListener("input", () => {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const each of document.querySelectorAll(".contents li, article")) {
    each.hidden = !each.textContent.toLowerCase().includes(wanted);
  }
});

run();
