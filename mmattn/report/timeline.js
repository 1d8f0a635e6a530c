// Draws the timelines of the JSON in #data, and plays the recording from a chosen moment.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const { classes, hop, rows, seconds, source } = page;
  const [LINE, TOP, AXIS] = [17, 9, 18]; // pixels of a class, of the speaker bar, of the time axis
  const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]; // seconds
  const player = byId("player");
  const span = byId("span");
  let [start, shown, now] = [0, seconds, 0]; // seconds

  function clock(time, digits = 0) {
    const tens = Math.floor(time * 10 ** digits + 1e-6) / 10 ** digits;
    const [hours, minutes] = [Math.floor(tens / 3600), Math.floor(tens / 60) % 60];
    const rest = (tens % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  }

  const percent = (share) => `${Math.round(100 * share)} %`;
  const top = (shares) => shares.indexOf(Math.max(...shares));

  // The index of a row's window at a time; -1 if there is none.
  function windowAt({ middles }, time) {
    let [low, high] = [0, middles.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (middles[middle] + hop / 2 <= time + 1e-6) low = middle + 1;
      else high = middle;
    }
    return low < middles.length && middles[low] - hop / 2 <= time + 1e-6 ? low : -1;
  }

  function words(row, time) {
    const place = windowAt(row, time);
    if (place < 0) {
      const others = rows.some((one) => windowAt(one, time) >= 0); // else there is no window
      return row.portrait && others ? "not seen" : "";
    }
    const [shares, gap] = [row.probabilities[place], row.gaps[place]];
    if (!shares) return gap;
    const best = classes
      .map((name, number) => [shares[number], name])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 3)
      .map(([share, name]) => `${name} ${percent(share)}`);
    const speaks = row.speaking[place] ? "speaking; " : "";
    return `${speaks}${best.join(", ")}${gap ? ` (${gap}: from the rest only)` : ""}`;
  }

  function make(tag, parent, properties = {}) {
    const element = Object.assign(document.createElement(tag), properties);
    parent.append(element);
    return element;
  }

  function colours() {
    const parse = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const [back, accent] = [parse(css("--panel")), parse(css("--accent"))];
    return (share) =>
      `rgb(${back.map((part, at) => Math.round(part + share * (accent[at] - part))).join(" ")})`;
  }

  function hatch(context) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const pen = tile.getContext("2d");
    pen.strokeStyle = css("--line");
    pen.beginPath();
    for (const shift of [-6, 0, 6]) {
      pen.moveTo(shift, 6);
      pen.lineTo(shift + 6, 0);
    }
    pen.stroke();
    return context.createPattern(tile, "repeat");
  }

  const gutter = () => (innerWidth < 600 ? 74 : 92); // pixels of the class names

  // A pixel column shows the mean of its windows.
  function draw(row) {
    const { canvas } = row;
    const lines = row.probabilities.some(Boolean) ? classes : [""]; // else only gaps
    const width = canvas.parentElement.clientWidth;
    const bottom = TOP + LINE * lines.length;
    const height = bottom + AXIS;
    const scale = devicePixelRatio;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const left = gutter();
    const columns = Math.max(1, Math.floor(width - left));
    const sums = classes.map(() => new Float64Array(columns));
    const [count, gaps, speaks] = [0, 0, 0].map(() => new Uint32Array(columns));
    row.middles.forEach((middle, place) => {
      const at = (time) => ((time - start) / shown) * columns;
      const first = Math.max(0, Math.floor(at(middle - hop / 2)));
      const end = Math.min(columns, Math.max(first + 1, Math.floor(at(middle + hop / 2))));
      for (let column = first; column < end; column++) {
        const shares = row.probabilities[place];
        if (row.speaking[place]) speaks[column]++;
        if (!shares) gaps[column]++;
        else {
          count[column]++;
          shares.forEach((share, number) => (sums[number][column] += share));
        }
      }
    });
    const [colour, pattern] = [colours(), hatch(context)];
    for (let column = 0; column < columns; column++) {
      const x = left + column;
      if (speaks[column]) {
        context.fillStyle = css("--accent");
        context.fillRect(x, 1, 1, TOP - 4);
      }
      if (count[column]) {
        sums.forEach((of, number) => {
          context.fillStyle = colour(of[column] / count[column]);
          context.fillRect(x, TOP + LINE * number, 1, LINE - 1);
        });
      } else if (gaps[column]) {
        context.fillStyle = pattern;
        context.fillRect(x, TOP, 1, bottom - TOP - 1);
      }
    }
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    context.fillStyle = css("--text");
    lines.forEach((name, number) =>
      context.fillText(name, 0, TOP + LINE * (number + 0.5), left - 6),
    );
    context.fillStyle = css("--quiet");
    const step = STEPS.find((one) => (one / shown) * columns >= 70) ?? 14400;
    context.textAlign = "center";
    for (let time = Math.ceil(start / step) * step; time <= start + shown; time += step) {
      const x = left + ((time - start) / shown) * columns;
      context.fillRect(x, bottom, 1, 4);
      const text = clock(time, step < 1 ? 1 : 0);
      const half = context.measureText(text).width / 2;
      context.fillText(text, Math.min(Math.max(x, left + half), width - half), bottom + 12);
    }
  }

  function showNow() {
    for (const row of rows) {
      const text = `${clock(now, 1)}  ${words(row, now)}`;
      row.readout.textContent = text;
      row.strip.setAttribute("aria-valuenow", now.toFixed(1));
      row.strip.setAttribute("aria-valuetext", text);
      const share = (now - start) / shown;
      row.head.hidden = share < 0 || share > 1;
      row.head.style.left = `calc(${gutter()}px + (100% - ${gutter()}px) * ${share})`;
    }
  }

  function look(from) {
    start = Math.max(0, Math.min(from, seconds - shown));
    rows.forEach(draw);
    showNow();
  }

  function follow(time) {
    now = Math.max(0, Math.min(time, seconds));
    if (now < start || now > start + shown) look(now - shown / 10);
    else showNow();
  }

  function seek(time) {
    follow(time);
    player.currentTime = now;
    if (byId("plays").checked) player.play().catch(() => {}); // #trouble says why
  }

  function addRow(row) {
    const box = make("section", byId("people"), { className: "person" });
    const title = make("div", box, { className: "who" });
    if (row.portrait) make("img", title, { src: row.portrait, alt: "", width: 56, height: 56 });
    const text = make("div", title);
    make("h3", text, { textContent: row.name });
    row.readout = make("p", text, { className: "readout" });
    row.strip = make("div", box, { className: "strip", tabIndex: 0 });
    const attributes = { role: "slider", "aria-valuemin": 0, "aria-valuemax": seconds };
    attributes["aria-label"] = `${row.name}: moment of the recording`;
    Object.entries(attributes).forEach(([name, value]) => row.strip.setAttribute(name, value));
    row.canvas = make("canvas", row.strip);
    row.head = make("div", row.strip, { className: "head" });
    row.strip.addEventListener("click", (event) => {
      const { left, width } = row.strip.getBoundingClientRect();
      const share = (event.clientX - left - gutter()) / (width - gutter());
      if (share >= 0) seek(start + share * shown);
    });
    row.strip.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
      const to = { Home: 0, End: seconds }[event.key] ?? now + hop * (moves[event.key] ?? NaN);
      if (Number.isNaN(to)) return;
      event.preventDefault();
      seek(to);
    });
  }

  // For each person, runs of windows with the same class, in temporal order.
  function passages() {
    const found = [];
    for (const row of rows) {
      let last = null;
      row.probabilities.forEach((shares, place) => {
        const middle = row.middles[place];
        const number = shares ? top(shares) : null;
        const continues = last && number === last.number && middle - last.end < hop;
        if (continues) {
          last.end = middle + hop / 2;
          last.shares.push(shares[number]);
        } else if (shares) {
          const [from, end] = [middle - hop / 2, middle + hop / 2];
          found.push((last = { row, number, start: from, end, shares: [shares[number]] }));
        } else last = null;
      });
    }
    return found.sort((a, b) => a.start - b.start);
  }

  function list() {
    const box = make("div", byId("list"), { className: "scroll long", tabIndex: 0 });
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Passages");
    const table = make("table", box);
    const head = make("tr", make("thead", table));
    const several = rows.length > 1;
    const columns = ["when", ...(several ? ["who"] : []), "predicted", "mean probability"];
    columns.forEach((textContent) => make("th", head, { textContent, scope: "col" }));
    const body = make("tbody", table);
    for (const one of passages()) {
      const line = make("tr", body);
      const textContent = `${clock(one.start, 1)} – ${clock(one.end, 1)}`;
      const play = make("button", make("td", line), { type: "button", textContent });
      play.addEventListener("click", () => seek(one.start));
      if (several) make("td", line, { textContent: one.row.name });
      make("td", line, { textContent: classes[one.number] });
      const mean = one.shares.reduce((sum, share) => sum + share, 0) / one.shares.length;
      make("td", line, { textContent: percent(mean) });
    }
  }

  function spans() {
    const choices = { 3600: "an hour", 600: "10 minutes", 60: "a minute", 15: "15 seconds" };
    make("option", span, { value: seconds, textContent: "all of it" });
    for (const [value, textContent] of Object.entries(choices).reverse()) {
      if (value < seconds) make("option", span, { value, textContent });
    }
    span.addEventListener("change", () => {
      shown = Number(span.value);
      look(now - shown / 2);
    });
  }

  rows.forEach(addRow);
  spans();
  list();
  look(0);
  player.addEventListener("timeupdate", () => follow(player.currentTime));
  player.addEventListener("loadedmetadata", () => {
    player.classList.toggle("heard", !player.videoWidth);
  });
  player.addEventListener("error", () => {
    byId("trouble").textContent =
      `${decodeURIComponent(source)} cannot be played: it was moved since this page was made, or ` +
      "this browser does not support its format.";
    byId("trouble").hidden = false;
  });
  player.src = source;
  // The player's own events are a quarter of a second apart.
  (function tick() {
    if (!player.paused) follow(player.currentTime);
    requestAnimationFrame(tick);
  })();
  addEventListener("resize", () => look(start));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => look(start));
})();
