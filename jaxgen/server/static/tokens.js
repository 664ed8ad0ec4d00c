// Colours, and texts whose tokens can be picked. Texts are only ever set with textContent.

// The scales of jaxgen/colors.py; a test compares them.
export const SCALE = [[38, 36, 92], [44, 92, 156], [52, 148, 168], [140, 202, 166], [252, 244, 190]];
export const NEGATIVE = [58, 126, 194], NEUTRAL = [246, 246, 248], POSITIVE = [217, 95, 14], UNKNOWN = [150, 150, 150];
const LOWEST = -3;

const between = (low, high, share) => low.map((each, i) => Math.round(each + (high[i] - each) * share));

export function probabilityColor(probability) {
  if (!Number.isFinite(probability)) return UNKNOWN;
  const share = 1 - Math.log10(Math.min(Math.max(probability, 10 ** LOWEST), 1)) / LOWEST;
  const place = share * (SCALE.length - 1);
  const first = Math.min(Math.floor(place), SCALE.length - 2);
  return between(SCALE[first], SCALE[first + 1], place - first);
}

export function signedColor(value) {
  if (!Number.isFinite(value)) return UNKNOWN;
  return between(NEUTRAL, value > 0 ? POSITIVE : NEGATIVE, Math.min(Math.abs(value), 1));
}

// Black or white, whichever has more contrast: the relative luminance of WCAG 2.
function ink(color) {
  const [red, green, blue] = color.map((each) => (each / 255 <= 0.04045 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "black" : "white";
}

export function paint(element, color) {
  element.style.backgroundColor = `rgb(${color.join(", ")})`;
  element.style.color = ink(color);
}

// A new element with a text and children.
export function make(name, options = {}, ...children) {
  const element = Object.assign(document.createElement(name), options);
  element.append(...children);
  return element;
}

// Control characters as their pictures, but for line breaks and tabs.
export const visible = (text) =>
  text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (each) => String.fromCharCode(0x2400 + each.charCodeAt(0)));
// The same for a label in one line.
export const quoted = (text) => visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +$/, (each) => "␣".repeat(each.length));
export const percent = (probability) => `${Number((100 * probability).toPrecision(3))} %`;

function legend(box, name, values, color, text) {
  box.replaceChildren(name);
  for (const value of values) {
    const each = make("span", { textContent: text(value) });
    paint(each, color(value));
    box.append(each);
  }
}
export const probabilityLegend = (box) => legend(box, "probability of a token:", [0.001, 0.01, 0.1, 1], probabilityColor, percent);
export const bitsLegend = (box, most) =>
  legend(box, "bits more than the other:", [-1, -0.5, 0, 0.5, 1], signedColor, (each) => String(each * most));
export const valueLegend = (box, most) =>
  legend(box, "value:", [-1, -0.5, 0, 0.5, 1], signedColor, (each) => String(Number((each * most).toPrecision(2))));

// A text of coloured tokens {text, color, title, forced}. One of them can be reached with Tab, the others with the arrow keys.
// `show(i, pinned)` is called when token i is pointed at or picked. Default: its title stands below the text.
export class Tokens {
  constructor(box, show) {
    this.box = box;
    this.show = show ?? ((i) => { this.note.textContent = box.children[i].getAttribute("aria-label"); });
    if (!show) box.after((this.note = make("p", { className: "note", textContent: "\u00a0" })));
    this.pinned = -1;
    const at = (event) => [...box.children].indexOf(event.target.closest("[role=button]"));
    box.addEventListener("pointerover", (event) => { if (this.pinned < 0 && at(event) >= 0) this.show(at(event), false); });
    box.addEventListener("focusin", (event) => { if (this.pinned < 0 && at(event) >= 0) this.show(at(event), false); });
    box.addEventListener("click", (event) => { if (at(event) >= 0) this.pick(at(event)); });
    box.addEventListener("keydown", (event) => this.move(event, at(event)));
  }

  clear() {
    this.box.replaceChildren();
    this.pinned = -1;
  }

  // Adds tokens. `follow`: a box that shows its end goes on to show it.
  add(tokens, follow = false) {
    const atEnd = follow && this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    for (const token of tokens) {
      const element = make("span", { textContent: visible(token.text), title: token.title ?? "", className: token.forced ? "forced" : "" });
      if (token.color) {
        if (token.text.startsWith("\n")) element.classList.add("break");
        paint(element, token.color);
        element.setAttribute("role", "button");
        element.setAttribute("aria-label", `${quoted(token.text)}, ${token.title}`);
        element.tabIndex = this.box.querySelector("[tabindex='0']") ? -1 : 0;
      }
      this.box.append(element);
    }
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  focus(i) {
    this.box.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    this.box.children[i].tabIndex = 0;
    this.box.children[i].focus();
  }

  pick(i) {
    this.unpick();
    this.pinned = i;
    this.box.children[i].classList.add("chosen");
    this.show(i, true);
  }

  unpick() {
    this.box.children[this.pinned]?.classList.remove("chosen");
    this.pinned = -1;
  }

  move(event, i) {
    const last = this.box.children.length - 1;
    const first = [...this.box.children].findIndex((each) => each.getAttribute("role"));
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: first, End: last }[event.key];
    if (i < 0) return;
    if (to !== undefined) {
      this.unpick();
      this.focus(Math.min(Math.max(to, first), last));
    } else if (event.key === "Enter" || event.key === " ") {
      this.pick(i);
    } else if (event.key === "Escape") {
      this.unpick();
    } else {
      return;
    }
    event.preventDefault();
  }
}
