// Keeps a page up to date: asks for the same page again and puts its <main> in place of this one.
// Without JavaScript the page is whole all the same, and reloads itself.
const main = document.getElementById("main");
const live = document.getElementById("live");
const period = Number(main.dataset.pollMs);
let shown = "";

function atEnd() {
  for (const pre of document.querySelectorAll("pre[data-at-end]")) pre.scrollTop = pre.scrollHeight;
}

function busy() {
  const selection = document.getSelection();
  return document.hidden || (selection !== null && !selection.isCollapsed);
}

async function poll() {
  if (!busy()) {
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(10000) });
      if (answer.redirected) location.assign(answer.url);
      if (!answer.ok) throw new Error(`the pool answered ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = page.getElementById("main").innerHTML;
      if (next !== shown) {
        const open = [...main.querySelectorAll("details")].map((d) => d.open);
        main.innerHTML = next;
        main.querySelectorAll("details").forEach((d, i) => { if (i in open) d.open = open[i]; });
        shown = next;
        atEnd();
      }
      live.textContent = "Live.";
      live.className = "";
    } catch (error) {
      live.textContent = `Not up to date: ${error.message}.`;
      live.className = "stale";
    }
  }
  setTimeout(poll, period);
}

atEnd();
setTimeout(poll, period);
