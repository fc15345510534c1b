/** Creates and finds elements. All text enters the page here, as text: markup in it is not interpreted. */

export const find = (id) => document.getElementById(id);

/** An element with properties (`class`, `aria-…`, `role`, … as attributes; `style` as an object) and children. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") Object.entries(value).forEach(([key, set]) => made.style.setProperty(key, set));
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A copy of the element in a template. */
export const copyOf = (id) => find(id).content.firstElementChild.cloneNode(true);

/** Shows content in an element, and hides the element without content. */
export function show(id, ...children) {
  const shown = children.filter((child) => child);
  find(id).replaceChildren(...shown);
  find(id).hidden = !shown.length;
}
