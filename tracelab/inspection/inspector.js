// The inspector's front end: one module for the widget (anywidget calls `render`) and for the
// stand-alone page (which calls `mountSaved`). It is given plain JSON, and every text of a model, a
// prompt or an edit is put on the page by textContent or drawn on a canvas: nothing is read as HTML.

const QUANTITIES = {
  resid_post: ["Residual stream", "‖after − before‖ / ‖before‖ after each block"],
  mlp_out: ["MLP output", "‖after − before‖ / ‖before‖ of what the MLP adds"],
  attn_out: ["Attention output", "‖after − before‖ / ‖before‖ of what attention adds"],
  lens_kl: ["Logit lens", "KL(before ‖ after) in nats, read as if the block were the last"],
};

// Okabe and Ito's blue, orange and grey, and PuOr about 0; of each a ramp for light and dark pages.
const RAMPS = {
  light: {
    sequential: ["#f4f8fc", "#c6dbef", "#6baed6", "#2171b5", "#08306b"],
    first: ["#fafafa", "#d0d0d0", "#969696", "#525252", "#1a1a1a"],
    diverging: ["#542788", "#998ec3", "#f5f5f5", "#f1a340", "#b35806"],
  },
  dark: {
    sequential: ["#1b2530", "#1f4e79", "#2f7fc0", "#6fb6e8", "#d6ecfb"],
    first: ["#232323", "#4a4a4a", "#7f7f7f", "#b4b4b4", "#f0f0f0"],
    diverging: ["#c9b3f0", "#8468b8", "#2a2a2d", "#c07a28", "#ffc680"],
  },
};
const ANSWER_LATE = 20000; // ms after which a kernel that says nothing is mentioned

// --- small pieces

function h(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 0.001 && size < 10000) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace("e-", "e−").replace("e+", "e");
}

const probability = (p) => (p > 0 && p < 0.0005 ? "<0.001" : p.toFixed(3));
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value));
const label = (token) => (token.trim() === "" ? JSON.stringify(token) : token);

function mix(ramp, share) {
  const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const from = Math.min(Math.floor(at), ramp.length - 2);
  const [a, b] = [ramp[from], ramp[from + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return `rgb(${a.map((low, i) => Math.round(low + (b[i] - low) * (at - from))).join(",")})`;
}

function quantile(values, share) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

function isDark(element) {
  const numbers = getComputedStyle(element).backgroundColor.match(/[\d.]+/g);
  if (!numbers) return false;
  const [red, green, blue] = numbers.map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue < 110;
}

const select = (name, options, chosen, act) => {
  const box = h("select", { "aria-label": name, on: { change: (event) => act(event.target.value) } });
  for (const [value, text] of options) box.append(h("option", { value, text }));
  box.value = String(chosen);
  return h("label", { class: "pick" }, h("span", { text: name }), box);
};

const legend = (ramp, low, high, text) =>
  h(
    "span",
    { class: "legend" },
    h("span", { text: low }),
    h("span", { class: "ramp", style: `background: linear-gradient(to right, ${ramp.join(",")})`, "aria-hidden": "true" }),
    h("span", { text: high }),
    h("span", { class: "what", text }),
  );

// --- the view of one prompt

/**
 * Draws everything and keeps what is selected.
 * source: {setup, part(name), live, ask(request), cases, choose(i)}; see mountSaved and render.
 */
class View {
  constructor(root, source) {
    this.source = source;
    this.pending = new Map();
    this.chosen = { position: null, layer: null, head: null, quantity: "resid_post" };
    this.root = h("div", { class: "tracelab-inspector", "data-lm-suppress-shortcuts": "true" });
    // a notebook's shortcuts are not for what is typed here
    this.root.addEventListener("keydown", (event) => event.stopPropagation());
    this.parts = {};
    for (const name of ["controls", "status", "tokens", "map", "next", "heads", "text"])
      this.parts[name] = h(name === "status" ? "p" : "section", { class: name });
    const status = this.parts.status;
    status.setAttribute("role", "status");
    this.root.append(
      this.parts.controls, status, this.parts.tokens,
      h("div", { class: "pair" }, this.parts.map, this.parts.next),
      this.parts.heads, this.parts.text,
    );
    root.append(this.root);
    this.fit();
    this.drawControls();
    this.draw();
    this.look = () => { if (this.fit()) this.draw(); };
    this.media = matchMedia("(prefers-color-scheme: dark)");
    this.media.addEventListener("change", this.look);
    this.themes = new MutationObserver(this.look);
    this.themes.observe(document.body, { attributes: true });
    this.themes.observe(document.documentElement, { attributes: true });
    // a cell may be laid out after it is rendered
    this.sizes = new ResizeObserver(this.look);
    this.sizes.observe(this.root);
  }

  end() {
    this.media.removeEventListener("change", this.look);
    this.themes.disconnect();
    this.sizes.disconnect();
    this.root.remove();
  }

  /** Take the width and the theme of the place; whether either is another than before. */
  fit() {
    const [width, dark] = [this.root.clientWidth, isDark(this.root)];
    const changed = width !== this.width || dark !== this.dark;
    Object.assign(this, { width, dark });
    this.root.classList.toggle("dark", dark);
    this.root.classList.toggle("narrow", width < 720);
    return changed;
  }

  get ramps() {
    return RAMPS[this.dark ? "dark" : "light"];
  }

  get view() {
    return this.source.part("view");
  }

  // --- controls: live ones, or the choice of what was saved

  drawControls() {
    const { setup, live } = this.source;
    const head = h("div", { class: "head" }, h("strong", { text: "Inspector" }), h("span", { class: "model", text: setup.model }));
    this.parts.controls.replaceChildren(head, ...(live ? this.liveControls() : this.savedControls()));
  }

  liveControls() {
    const { setup } = this.source;
    this.input = h("input", { type: "text", value: this.view.prompt, spellcheck: "false", autocomplete: "off" });
    const form = h(
      "form",
      { class: "prompt", on: { submit: (event) => { event.preventDefault(); this.run(); } } },
      h("label", {}, h("span", { text: "Prompt" }), this.input),
      h("button", { type: "submit", text: "Run", title: "or press Enter" }),
    );
    this.switches = setup.edits.map((edit) => {
      const box = h("input", { type: "checkbox", checked: edit.on, on: { change: () => this.run() } });
      const shown = h("output", { text: `× ${edit.strength.toFixed(2)}` });
      const slider = h("input", {
        type: "range", min: 0, max: 2, step: 0.05, value: edit.strength,
        "aria-label": `strength of ${edit.name}`,
        on: {
          input: () => { shown.textContent = `× ${Number(slider.value).toFixed(2)}`; },
          change: () => { if (box.checked) this.run(); },
        },
      });
      return { box, slider, row: h("div", { class: "edit" }, h("label", {}, box, h("span", { text: edit.name })), slider, shown) };
    });
    const edits = h("fieldset", {}, h("legend", { text: "Edits, applied together" }), ...this.switches.map((each) => each.row));
    return [form, edits];
  }

  savedControls() {
    const { cases } = this.source;
    const names = [["prompt", "Prompt"], ["edit", "Edit"]].map(([field, name]) => {
      const values = [...new Set(cases.map((each) => each[field]))];
      const text = field === "prompt" ? (i) => cases.find((each) => each.prompt === i).view.prompt : (i) => i;
      if (values.length < 2) return h("p", { class: "given" }, h("span", { text: `${name}: ` }), h("b", { text: text(values[0]) }));
      return select(name, values.map((value) => [value, text(value)]), values[0], (value) => {
        this.source.pick(field, value);
        this.draw();
      });
    });
    const note = "Saved numbers: to type prompts and move strengths, run tracelab.inspector(model, edits) in a notebook.";
    return [...names, h("p", { class: "note", text: note })];
  }

  run() {
    if (this.input.value !== this.view.prompt) this.chosen.position = null;
    this.ask({
      do: "run",
      prompt: this.input.value,
      edits: this.switches.map(({ box, slider }) => ({ on: box.checked, strength: Number(slider.value) })),
      lens: this.chosen.quantity === "lens_kl",
      layer: this.chosen.layer, // none: the one that this edit moves most
    });
  }

  ask(request) {
    if (this.waiting) {
      this.pending.set(request.do, request); // of several of a kind that come meanwhile the last counts
      return;
    }
    this.waiting = Math.random().toString(36).slice(2);
    this.say("computing …");
    this.root.classList.add("busy");
    this.late = setTimeout(() => this.say("no answer from the kernel yet: is it running, or busy with another cell?"), ANSWER_LATE);
    this.source.ask({ ...request, id: this.waiting });
  }

  /** An answer came: everything that it brought is there. */
  answered() {
    const said = this.source.part("said");
    if (said.id === this.waiting) {
      clearTimeout(this.late);
      this.waiting = null;
      this.root.classList.remove("busy");
    }
    if (this.pending.size) {
      // a run first: what else was asked is of what it shows
      const next = this.pending.has("run") ? "run" : this.pending.keys().next().value;
      const request = this.pending.get(next);
      this.pending.delete(next);
      this.ask(request);
      return;
    }
    this.draw();
    if (said.error) this.say(said.error, true);
    else this.say(`computed in ${said.seconds.toFixed(2)} s`);
  }

  say(text, wrong = false) {
    this.parts.status.textContent = text;
    this.parts.status.classList.toggle("error", wrong);
  }

  // --- what is selected

  get position() {
    const known = this.view.positions;
    const { position } = this.chosen;
    return known.includes(position) ? position : known[known.length - 1];
  }

  get layer() {
    const heads = this.source.part("heads");
    const layers = this.source.setup.n_layers;
    const { layer } = this.chosen;
    if (layer !== null && layer < layers) return layer;
    return heads ? heads.layer : layers - 1;
  }

  choose(change) {
    const layer = this.layer;
    Object.assign(this.chosen, change);
    if (this.layer !== layer) this.fetchHeads();
    this.draw();
  }

  fetchHeads() {
    const heads = this.source.part("heads");
    if (heads && this.source.live && heads.layer !== this.layer) this.ask({ do: "heads", layer: this.layer });
  }

  draw() {
    // what has the focus keeps it, though everything is drawn anew
    const focused = this.root.contains(document.activeElement) && document.activeElement.dataset.key;
    this.drawTokens();
    this.drawMap();
    this.drawNext();
    this.drawHeads();
    this.drawText();
    if (focused) this.root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  // --- the prompt, token by token

  drawTokens() {
    const { tokens, sensitive, kl, positions } = this.view;
    const most = greatest(kl.filter(Number.isFinite), 1e-9);
    const row = h("div", { class: "strip", role: "group", "aria-label": "tokens of the prompt" });
    tokens.forEach((token, position) => {
      const known = positions.includes(position);
      const marked = sensitive.includes(position);
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.height = `${known ? Math.round((26 * kl[position]) / most) : 0}px`;
      row.append(
        h(
          "button",
          {
            type: "button", class: marked ? "token sensitive" : "token", "data-key": `token${position}`,
            "aria-pressed": String(position === this.position), disabled: !known,
            title: `position ${position}: KL ${number(kl[position])} nats${marked ? "; names a group or a profession" : ""}`,
            on: { click: () => this.choose({ position }) },
          },
          h("span", { class: "well" }, bar),
          h("span", { class: "text", text: label(token) }),
        ),
      );
    });
    this.parts.tokens.replaceChildren(
      h("h4", { text: "The prompt, token by token" }),
      h("p", { class: "how", text: `Bars: how far the next-token distribution moved after each token, KL up to ${number(most < 1e-8 ? 0 : most)} nats. Underlined: names a group or a profession. Click a token to look at what follows it.` }),
      row,
    );
  }

  // --- layers x positions

  drawMap() {
    const { maps, tokens } = this.view;
    const { live, setup } = this.source;
    const offered = Object.keys(QUANTITIES).filter((name) => maps[name] || (live && name === "lens_kl"));
    let { quantity } = this.chosen;
    if (!maps[quantity]) quantity = offered.find((name) => maps[name]);
    const pick = select("Quantity", offered.map((name) => [name, QUANTITIES[name][0]]), quantity, (value) => {
      this.chosen.quantity = value;
      if (!maps[value]) this.run();
      else this.draw();
    });
    const section = this.parts.map;
    if (!quantity) {
      section.replaceChildren(h("h4", { text: "Layers and positions" }), h("p", { text: "This architecture shows no activations to compare." }));
      return;
    }
    const grid = maps[quantity];
    const every = grid.flat().filter(Number.isFinite);
    const top = quantile(every, 0.99) || greatest(every, 0) || 1;
    const readout = h("p", { class: "readout", "aria-hidden": "true" });
    const tell = (layer, position) => {
      readout.textContent = `layer ${layer}, ${label(tokens[position])}: ${number(grid[layer][position])}`;
    };
    const table = h("div", { class: "grid", role: "grid", "aria-label": `${QUANTITIES[quantity][0]}: how far each layer moved at each token` });
    table.style.gridTemplateColumns = `2.6em repeat(${tokens.length}, minmax(13px, 1fr))`;
    table.style.setProperty("--cell", `${Math.min(Math.max(Math.round(340 / grid.length), 9), 24)}px`);
    for (let layer = grid.length - 1; layer >= 0; layer--) {
      const line = h("div", { role: "row", class: "line" });
      line.append(h("span", { class: "layer", role: "rowheader", text: layer % 5 === 0 || grid.length <= 12 ? layer : "" }));
      grid[layer].forEach((value, position) => {
        const here = layer === this.layer && position === this.position;
        const names = ["cell", layer === this.layer && "row", position === this.position && "column"].filter(Boolean);
        const cell = h("span", {
          role: "gridcell", class: names.join(" "), tabindex: here ? 0 : -1, "data-key": `cell${layer},${position}`,
          "aria-label": `layer ${layer}, token ${label(tokens[position])}: ${number(value)}`, "aria-selected": String(here),
        });
        cell.style.background = Number.isFinite(value) ? mix(this.ramps.sequential, value / top) : "transparent";
        cell.addEventListener("click", () => this.choose({ layer, position }));
        cell.addEventListener("mouseenter", () => tell(layer, position));
        line.append(cell);
      });
      table.append(line);
    }
    const last = h("div", { class: "line names", "aria-hidden": "true" }, h("span"));
    tokens.forEach((token, position) =>
      last.append(h("span", { class: this.view.sensitive.includes(position) ? "name sensitive" : "name" }, h("span", { text: label(token) }))));
    table.append(last);
    table.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const layer = Math.min(Math.max(this.layer + step[0], 0), grid.length - 1);
      const place = Math.min(Math.max(this.view.positions.indexOf(this.position) + step[1], 0), this.view.positions.length - 1);
      this.choose({ layer, position: this.view.positions[place] });
      this.root.querySelector('.cell[tabindex="0"]')?.focus({ preventScroll: true });
    });
    tell(this.layer, this.position);
    const layers = Array.from({ length: setup.n_layers }, (_, layer) => [layer, layer]);
    section.replaceChildren(
      h("h4", { text: "Layers and positions" }),
      h("p", { class: "how", text: `${QUANTITIES[quantity][1]}. A large number says that a vector is another one, not that it matters.` }),
      h("div", { class: "picks" }, pick,
        select("Layer", layers, this.layer, (value) => this.choose({ layer: Number(value) })),
        select("Token", this.view.positions.map((i) => [i, `${i} ${label(tokens[i])}`]), this.position, (value) => this.choose({ position: Number(value) }))),
      h("div", { class: "scroll" }, table),
      h("div", { class: "legends" }, legend(this.ramps.sequential, "0", `≥ ${number(top)}`, ""), readout),
    );
  }

  // --- tokens promoted and demoted

  drawNext() {
    const { top, tokens } = this.view;
    const rows = top[this.position] ?? { promoted: [], demoted: [] };
    const every = [...rows.promoted, ...rows.demoted];
    const most = greatest(every.flatMap(([, before, after]) => [before, after]), 1e-9);
    const table = h("table", {}, h("thead", {}, h("tr", {},
      h("th", { scope: "col", text: "next token" }), h("th", { scope: "col", class: "chart", text: "probability" }),
      h("th", { scope: "col", class: "number", text: "before" }), h("th", { scope: "col", class: "number", text: "after" }))));
    for (const [direction, sign] of [["promoted", "▲ promoted"], ["demoted", "▼ demoted"]]) {
      const body = h("tbody", { class: direction }, h("tr", { class: "group" }, h("th", { colspan: 4, scope: "rowgroup", text: sign })));
      for (const [token, before, after] of rows[direction]) {
        const [low, high] = [Math.min(before, after), Math.max(before, after)].map((p) => (100 * p) / most);
        const line = h("span", { class: "stem" });
        line.style.left = `${low}%`;
        line.style.width = `${high - low}%`;
        const [was, is] = ["was", "is"].map((name) => h("span", { class: name }));
        was.style.left = `${(100 * before) / most}%`;
        is.style.left = `${(100 * after) / most}%`;
        body.append(h("tr", {},
          h("th", { scope: "row", class: "word", text: label(token), title: token }),
          h("td", { class: "chart" }, h("span", { class: "track", "aria-hidden": "true" }, line, was, is)),
          h("td", { class: "number", text: probability(before) }), h("td", { class: "number", text: probability(after) })));
      }
      table.append(body);
    }
    const unmoved = every.every(([, before, after]) => before === after);
    this.parts.next.replaceChildren(
      h("h4", {}, "What follows ", h("q", { text: label(tokens[this.position]) })),
      h("p", { class: "how", text: unmoved ? "Nothing moved here." : "Tokens whose probability rose and fell most: ring before, diamond after." }),
      unmoved ? h("span") : table,
    );
  }

  // --- attention heads of a layer

  drawHeads() {
    const section = this.parts.heads;
    const { live, setup } = this.source;
    const heads = this.source.heads(this.layer);
    const held = this.source.layersOfHeads();
    const layers = Array.from({ length: setup.n_layers }, (_, layer) => layer).filter((layer) => live || held.includes(layer));
    const title = h("h4", { text: `Attention heads of layer ${this.layer}` });
    if (!held.length) {
      section.replaceChildren(title, h("p", { class: "how", text: "There are no attention patterns of this prompt: the architecture shows none, or the prompt has more than 64 tokens." }));
      return;
    }
    const pick = select("Layer", layers.map((layer) => [layer, layer]), this.layer, (value) => this.choose({ layer: Number(value) }));
    if (!heads) {
      const why = live ? "computing …" : `This file holds the heads of the layers that moved most: ${layers.join(", ")}.`;
      section.replaceChildren(title, h("div", { class: "picks" }, pick), h("p", { class: "how", text: why }));
      return;
    }
    const n = this.view.tokens.length;
    const maps = heads.before.map((before, head) => unpack(before, heads.change[head], n));
    const scale = scales(maps, n);
    const size = maps.map(({ change }) => Math.sqrt(change.flat().reduce((sum, value) => sum + value * value, 0)));
    const largest = size.indexOf(greatest(size, 0));
    const head = this.chosen.head !== null && this.chosen.head < maps.length ? this.chosen.head : largest;
    const cards = h("div", { class: "cards" });
    maps.forEach((map, i) => {
      const canvas = h("canvas", { "aria-hidden": "true" });
      cards.append(h("button", {
        type: "button", class: "card", "aria-pressed": String(i === head), "data-key": `head${i}`,
        "aria-label": `head ${i}: attention moved by up to ${number(greatest(map.change.flat().map(Math.abs), 0))}`,
        on: { click: () => { this.chosen.head = i; this.draw(); } },
      }, h("span", { class: "name", text: `head ${i}` }), canvas));
      this.paintCard(canvas, map, scale);
    });
    const readout = h("p", { class: "readout", text: `head ${head}: point at a cell to read it` });
    const detail = h("div", { class: "detail" });
    for (const [field, name] of [["before", "before"], ["after", "after"], ["change", "after − before"]]) {
      const canvas = h("canvas", { role: "img", "aria-label": `head ${head} of layer ${this.layer}, ${name}; rows are queries, columns keys` });
      detail.append(h("figure", {}, h("figcaption", { text: name }), canvas));
      this.paintDetail(canvas, maps[head], field, scale, (query, key) => {
        const { tokens } = this.view;
        const { before, after, change } = maps[head];
        readout.textContent = `head ${head}, ${label(tokens[query])} attends to ${label(tokens[key])}: ${number(before[query][key])} → ${number(after[query][key])} (${signed(change[query][key])})`;
      });
    }
    const ramps = this.ramps;
    section.replaceChildren(
      title,
      h("p", { class: "how", text: "Each head: before | after | change; rows are queries, columns keys. Ticks mark the underlined tokens. The first key takes most of the attention, so its column has a scale of its own. Click a head to enlarge it. Attention is where a head looks, not what it does with what it sees." }),
      h("div", { class: "picks" }, pick),
      cards,
      h("h5", { text: `Head ${head}` }), detail, readout,
      h("div", { class: "legends" },
        legend(ramps.sequential, "0", `≥ ${number(scale.others)}`, "attention"),
        legend(ramps.diverging, `−${number(scale.change)}`, `+${number(scale.change)}`, "change"),
        legend(ramps.first, "0", number(scale.first), "first key"),
        legend(ramps.diverging, `−${number(scale.firstChange)}`, `+${number(scale.firstChange)}`, "its change")),
    );
  }

  colour(field, value, key, scale) {
    if (field === "change") return mix(this.ramps.diverging, 0.5 + value / (2 * (key ? scale.change : scale.firstChange)));
    return key ? mix(this.ramps.sequential, value / scale.others) : mix(this.ramps.first, value / scale.first);
  }

  /** One map into a square of a canvas; a gap sets the first key apart. */
  paint(pen, map, field, scale, left, top, side) {
    const n = map.before.length;
    const gap = n > 1 ? Math.max(1.5, side / 40) : 0;
    const cell = (side - gap) / n;
    const edge = (i) => Math.round(left + i * cell + (i > 0 ? gap : 0));
    const down = (i) => Math.round(top + i * (side / n));
    map[field].forEach((row, query) => row.forEach((value, key) => {
      pen.fillStyle = this.colour(field, value, key, scale);
      const end = key === 0 ? Math.round(left + cell) : edge(key + 1);
      pen.fillRect(edge(key), down(query), end - edge(key), down(query + 1) - down(query));
    }));
    return { edge, down, cell };
  }

  marks(pen, place, left, top, side, n) {
    pen.fillStyle = this.dark ? "#ffb000" : "#d55e00";
    for (const i of this.view.sensitive) {
      const middle = (place.edge(i) + place.edge(i + 1)) / 2;
      const level = (place.down(i) + place.down(i + 1)) / 2;
      const wide = Math.max(1.5, Math.min(4, place.cell * 0.7));
      pen.fillRect(middle - wide / 2, top + side + 1, wide, 3);
      pen.fillRect(left - 4, level - wide / 2, 3, wide);
    }
  }

  paintCard(canvas, map, scale) {
    const [side, gap, pad] = this.width < 500 ? [50, 6, 5] : [74, 9, 5];
    const pen = sized(canvas, 3 * side + 2 * gap + pad, side + pad);
    ["before", "after", "change"].forEach((field, i) => {
      const left = pad + i * (side + gap);
      const place = this.paint(pen, map, field, scale, left, 0, side);
      this.marks(pen, place, left, 0, side, map.before.length);
    });
  }

  paintDetail(canvas, map, field, scale, tell) {
    const { tokens, sensitive } = this.view;
    const n = tokens.length;
    const columns = this.width < 640 ? 1 : 3;
    const room = Math.max(180, Math.min(360, (this.width - 40) / columns - 20));
    const font = 11;
    const short = tokens.map((token) => { const text = label(token); return text.length > 11 ? `${text.slice(0, 10)}…` : text; });
    const margin = n <= 40 ? 66 : 8;
    const side = room - margin;
    const pen = sized(canvas, room, side + margin);
    const place = this.paint(pen, map, field, scale, margin, 0, side);
    this.marks(pen, place, margin, 0, side, n);
    if (n <= 40) {
      pen.font = `${Math.min(font, Math.max(7, place.cell + 1))}px ui-monospace, monospace`;
      pen.textBaseline = "middle";
      const ink = getComputedStyle(this.root).color;
      short.forEach((text, i) => {
        pen.fillStyle = sensitive.includes(i) ? (this.dark ? "#ffb000" : "#b34700") : ink;
        pen.textAlign = "right";
        pen.fillText(text, margin - 6, (place.down(i) + place.down(i + 1)) / 2);
        pen.save();
        pen.translate((place.edge(i) + (i ? place.edge(i + 1) : place.edge(0) + place.cell)) / 2, side + 6);
        pen.rotate(-Math.PI / 2);
        pen.fillText(text, 0, 0);
        pen.restore();
      });
    }
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const query = map.before.findIndex((_, i) => y < place.down(i + 1));
      const key = map.before.findIndex((_, i) => x < place.edge(i + 1));
      if (x >= margin && query >= 0 && key >= 0 && key <= query) tell(query, key);
    });
  }

  // --- continuations

  drawText() {
    const { live } = this.source;
    const texts = this.source.part("texts");
    const section = this.parts.text;
    const title = h("h4", { text: "What it goes on to write" });
    const controls = h("div", { class: "picks" });
    if (live) {
      const seed = h("input", { type: "number", min: 0, max: 4294967295, step: 1, value: texts ? texts.seed : 0 });
      seed.value = String(this.seed ?? (texts ? texts.seed : 0));
      seed.addEventListener("input", () => { this.seed = seed.value; });
      controls.append(h("label", { class: "pick" }, h("span", { text: "Seed" }), seed),
        h("button", { type: "button", text: "Sample", "data-key": "sample", on: { click: () => this.ask({ do: "texts", seed: Number(seed.value) }) } }));
    } else if (!texts) {
      section.replaceChildren();
      return;
    }
    const columns = h("div", { class: "columns" });
    for (const side of texts ? ["before", "after"] : []) {
      const text = h("p", {}, h("span", { class: "given", text: this.view.prompt }));
      for (const [piece, differs] of texts[side]) {
        const space = differs ? piece.match(/^\s*/)[0] : piece; // before a mark, not in it
        text.append(space, ...(differs ? [h("mark", { text: piece.slice(space.length) })] : []));
      }
      columns.append(h("div", {}, h("h5", { text: side }), text));
    }
    const alike = texts && ![...texts.before, ...texts.after].some(([, differs]) => differs);
    const verdict = alike ? "no word differs" : "marked words differ";
    section.replaceChildren(title,
      h("p", { class: "how", text: texts ? `Sampled with seed ${texts.seed} on both sides: ${verdict}. One sample is an illustration, not a measurement.` : `Sample ${this.source.setup.new_tokens} tokens before and after with the same seed (takes a moment).` }),
      controls, columns);
  }
}

function sized(canvas, width, height) {
  const density = Math.max(1, globalThis.devicePixelRatio || 1);
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  return pen;
}

/** Lower triangles, row by row in units of 1/10000, as rows of numbers. */
function unpack(before, change, n) {
  const made = { before: [], after: [], change: [] };
  let at = 0;
  for (let query = 0; query < n; query++) {
    const old = before.slice(at, at + query + 1).map((value) => value / 1e4);
    const moved = change.slice(at, at + query + 1).map((value) => value / 1e4);
    made.before.push(old);
    made.change.push(moved);
    made.after.push(old.map((value, key) => value + moved[key]));
    at += query + 1;
  }
  return made;
}

/** The greatest of as many numbers as there are, which `Math.max` takes only so many of. */
function greatest(values, least) {
  return values.reduce((most, value) => (value > most ? value : most), least);
}

/** The ends of the scales of a layer's heads; the first key has its own. */
function scales(maps) {
  const every = (field, first) => maps.flatMap((map) => map[field].flatMap((row) => (first ? row.slice(0, 1) : row.slice(1))));
  const size = (values) => values.map(Math.abs);
  // one token alone attends to itself, which says nothing
  return {
    others: quantile([...every("before", false), ...every("after", false)], 0.99) || 1,
    first: greatest([...every("before", true), ...every("after", true)], 0) || 1,
    change: greatest(size(every("change", false)), 0) || 1,
    firstChange: greatest(size(every("change", true)), 0) || 1,
  };
}

// --- the two places where it is shown

/** What anywidget calls: the kernel answers. */
function render({ model, el }) {
  const view = new View(el, {
    setup: model.get("setup"),
    live: true,
    part: (name) => model.get(name),
    heads: (layer) => (model.get("heads")?.layer === layer ? model.get("heads") : null),
    layersOfHeads: () => (model.get("heads") ? [model.get("heads").layer] : []),
    ask: (request) => model.send(request),
  });
  const answered = () => view.answered();
  model.on("change:said", answered);
  return () => {
    model.off("change:said", answered);
    view.end();
  };
}

/** What a stand-alone page calls: everything is in `page` already. */
function mountSaved(el, page) {
  const picked = { prompt: page.cases[0].prompt, edit: page.cases[0].edit };
  const current = () => page.cases.find((each) => each.prompt === picked.prompt && each.edit === picked.edit);
  new View(el, {
    setup: page.setup,
    live: false,
    cases: page.cases,
    pick: (field, value) => { picked[field] = field === "prompt" ? Number(value) : value; },
    part: (name) => (name === "heads" ? current().heads && { layer: current().heads.first } : current()[name]),
    heads: (layer) => current().heads?.layers[layer] ?? null,
    layersOfHeads: () => Object.keys(current().heads?.layers ?? {}).map(Number),
  });
}

export { mountSaved };
export default { render };
