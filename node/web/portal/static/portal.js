// What every page does beyond plain HTML: menu on small screens, dialogs, busy buttons, copying, live areas.
// Pages work without it, except the viewer.

const menu = document.querySelector("[data-menu]");
menu?.addEventListener("click", () => {
  const open = document.getElementById(menu.getAttribute("aria-controls")).classList.toggle("open");
  menu.setAttribute("aria-expanded", String(open));
});

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const opener = target?.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
  if (target?.closest("[data-dialog-close]")) target.closest("dialog")?.close();
  if (target instanceof HTMLDialogElement) target.close();
  const copier = target?.closest("[data-copy]");
  if (copier) copy(copier);
  if (target?.closest("[data-print]")) window.print();
});

document.querySelector("dialog[data-open]")?.showModal();

async function copy(button) {
  const text = document.getElementById(button.dataset.copy)?.textContent?.trim() ?? "";
  await navigator.clipboard.writeText(text);
  const words = button.querySelector("span");
  words.textContent = button.dataset.copied ?? "✓";
}

// A form that was sent shows it, and is not sent twice.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) return event.preventDefault();
  if (form.method === "post" && !form.dataset.download) {
    form.dataset.sent = "1";
    const button = event.submitter ?? form.querySelector("button");
    button?.setAttribute("aria-busy", "true");
    if (form.dataset.busy && button?.querySelector("span")) button.querySelector("span").textContent = form.dataset.busy;
  }
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // a page from the back-forward cache may be after sign-out
});

// <div data-live="/events/…">: the stream says what to put there, as text by name, or asks for a fresh page part.
//   event "values"  {name: text}       fills [data-value=name] and <progress data-value=name>
//   event "refresh" {}                 fetches this page again and replaces the area
//   event "end"     {}                 closes the stream
for (const area of document.querySelectorAll("[data-live]")) watch(area);

function watch(area) {
  const source = new EventSource(area.dataset.live);
  let fetching = false;
  let again = false;
  const refresh = async () => {
    again = fetching; // what is on its way may be older than this wish
    if (fetching) return;
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(area.id);
      if (!fresh) return;
      const focused = area.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      area.replaceChildren(...fresh.childNodes);
      // Who works with the keyboard stays at the link where they were.
      if (focused) area.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    } finally {
      fetching = false;
      if (again) refresh();
    }
  };
  let opened = false;
  source.addEventListener("open", () => {
    if (opened) refresh(); // what changed while the stream was away, nobody told
    opened = true;
  });
  source.addEventListener("values", (event) => {
    for (const [name, value] of Object.entries(JSON.parse(event.data))) {
      for (const place of area.querySelectorAll(`[data-value="${CSS.escape(name)}"]`)) {
        if (place instanceof HTMLProgressElement) place.value = Number(value);
        else place.textContent = String(value);
      }
    }
  });
  source.addEventListener("refresh", refresh);
  source.addEventListener("end", async () => {
    source.close();
    await refresh();
  });
}
