// Small custom elements of the pages. Each draws itself from its attributes, so a page that is morphed keeps them right.

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** "2 h 10 min" of seconds: two units at most, as shown.py writes them. */
export function duration(seconds) {
  let index = UNITS.findIndex(([size]) => seconds >= size);
  if (index < 0) index = UNITS.length - 1;
  const [size, unit] = UNITS[index];
  const whole = Math.floor(seconds / size);
  const below = UNITS[index + 1];
  const rest = below ? Math.floor((seconds % size) / below[0]) : 0;
  return `${whole} ${unit}` + (rest ? ` ${rest} ${below[1]}` : "");
}

/** <time-ago><time datetime=…></time></time-ago>: says how long ago, and keeps it true. */
class TimeAgo extends HTMLElement {
  connectedCallback() { ticking.add(this); this.tick(); }
  disconnectedCallback() { ticking.delete(this); }
  tick() {
    const time = this.querySelector("time");
    if (!time) return;
    const seconds = Math.round((Date.now() - Date.parse(time.dateTime)) / 1000);
    const text = Math.abs(seconds) < 1 ? "now" : seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
    if (time.textContent !== text) time.textContent = text;
  }
}

/** <count-down data-until=…>: the time left until a deadline; `data-soon` in its last five minutes. */
class CountDown extends HTMLElement {
  connectedCallback() { ticking.add(this); this.tick(); }
  disconnectedCallback() { ticking.delete(this); }
  tick() {
    const left = Math.round((Date.parse(this.dataset.until) - Date.now()) / 1000);
    this.toggleAttribute("data-soon", left < 300);
    const text = left > 0 ? `${duration(left)} left` : "time is up";
    if (this.textContent !== text) this.textContent = text;
  }
}

/** A button that goes from the system's colours to light, dark, and back. */
class ThemeSwitch extends HTMLElement {
  connectedCallback() {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    const names = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" };
    const show = () => { button.textContent = names[document.documentElement.dataset.theme ?? ""]; };
    button.addEventListener("click", () => {
      const order = ["", "light", "dark"];
      const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % order.length];
      if (next) {
        document.documentElement.dataset.theme = next;
        localStorage.setItem("perdure-theme", next);
      } else {
        delete document.documentElement.dataset.theme;
        localStorage.removeItem("perdure-theme");
      }
      show();
    });
    show();
    this.replaceChildren(button);
  }
}

const ticking = new Set();
setInterval(() => ticking.forEach((element) => element.tick()), 1000);

customElements.define("time-ago", TimeAgo);
customElements.define("count-down", CountDown);
customElements.define("theme-switch", ThemeSwitch);

// A filter form that has `data-instant` is sent when a choice in it changes; without scripts its button does it.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-instant]");
  if (form && event.target.matches("select, input[type=checkbox], input[type=radio]")) form.requestSubmit();
});

// The box in a table's head ticks all of its rows.
document.addEventListener("change", (event) => {
  if (!event.target.matches("input[data-all]")) return;
  for (const box of event.target.closest("table").querySelectorAll("tbody input[type=checkbox]")) {
    box.checked = event.target.checked;
  }
});

// What has been done is news for a while; what was refused stays until something else is said.
const NEWS_MS = 20000;
const notices = document.getElementById("notices");
const forget = () => {
  const good = notices.querySelector(".good");
  if (good) setTimeout(() => good.remove(), NEWS_MS);
};
if (notices) {
  new MutationObserver(forget).observe(notices, { childList: true });
  forget();
}

// Where there is room the menu is always open; on a phone it opens on demand.
const wide = matchMedia("(min-width: 62rem)");
const menu = document.querySelector("details.menu");
const fit = () => { if (menu) menu.open = wide.matches; };
wide.addEventListener("change", fit);
fit();
