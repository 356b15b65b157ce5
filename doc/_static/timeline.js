/* Memory over time, to point at: what a sample was, of which method and which processes.
 *
 * The samples stand in the page as JSON (examples/plot_memory_over_time.py writes them). The
 * picture above shows the same without scripts, and stays. The drawing is a slider over time:
 * so the keyboard moves it, and a screen reader says what is read off.
 */
"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 56, right: 12, top: 34, bottom: 40 };
  const HEIGHT = 380;
  const LETTER = 8; // about as wide as a digit
  const LEAST = 0.5; // seconds that can be seen at least

  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const mib = (amount) => `${whole.format(amount)} MiB`;
  const seconds = (time) => `${time.toFixed(1)} s`;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /** An element with attributes and content; in a drawing if `svg`. */
  function element(name, attributes = {}, content = [], svg = false) {
    const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.append(...[content].flat());
    return made;
  }

  const shape = (name, attributes, content) => element(name, attributes, content, true);

  /** The index of the sample that is nearest to a time. */
  function nearest(times, time) {
    let low = 0;
    let high = times.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (times[middle] < time) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return time - times[low] <= times[high] - time ? low : high;
  }

  /** Round numbers from 0 or `low` up to `high`, about so many. */
  function ticks(low, high, about) {
    const rough = (high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const all = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i += 1) {
      all.push(Number((i * step).toPrecision(12)));
    }
    return all;
  }

  /** Move numbers apart so that none lies on another, between two ends where there is room. */
  function spread(numbers, low, high) {
    let free = low - LETTER;
    for (const number of numbers) {
      number.at = Math.max(number.middle, free + number.half);
      free = number.at + number.half;
    }
    free = high + LETTER;
    for (const number of [...numbers].reverse()) {
      number.at = Math.min(number.at, free - number.half);
      free = number.at - number.half;
    }
    return numbers;
  }

  /** What was measured at a sample: when, by which method, and by which processes. */
  function reading(run, index) {
    const time = run.times[index];
    const phase = run.phases.find(({ began, ended }) => began <= time && time <= ended);
    const children = run.processes
      .map(({ name, first, mib: values }) => ({ name, amount: values[index - first] }))
      .filter(({ amount }) => amount);
    const together = (name, amount) => `${name} ${mib(amount)}`.replaceAll(" ", "\u00a0");
    const processes = children.map(({ name, amount }) => together(name, amount));
    if (run.metric === "RSS") {
      const rest = run.mib[index] - children.reduce((sum, { amount }) => sum + amount, 0);
      processes.unshift(together("caller", Math.max(rest, 0)));
    } else if (!processes.length) {
      processes.push("none");
    }
    return {
      time: seconds(time),
      method: phase ? phase.name + (phase.run ? "" : ` (${phase.peak})`) : "between the methods",
      total: `${mib(run.mib[index])} ${run.metric}`,
      processes,
    };
  }

  class Timeline {
    constructor(place, number) {
      this.place = place;
      this.runs = JSON.parse(place.querySelector("script").textContent);
      this.run = this.runs[0];
      this.index = this.run.mib.indexOf(Math.max(...this.run.mib));
      this.id = `timeline-${number}`;
      this.build();
    }

    get end() {
      return this.run.times[this.run.times.length - 1];
    }

    // -- Elements ------------------------------------------------------------------------

    build() {
      this.panel = element("div", { id: this.id, class: "timeline-panel", hidden: "" });
      const open = element(
        "button",
        { type: "button", class: "timeline-open", "aria-expanded": "false", "aria-controls": this.id },
        "Explore this figure",
      );
      open.addEventListener("click", () => {
        this.panel.hidden = !this.panel.hidden;
        open.setAttribute("aria-expanded", String(!this.panel.hidden));
        if (!this.panel.hidden && !this.drawing) {
          this.fill();
        }
      });
      this.place.append(open, this.panel);
    }

    fill() {
      this.drawing = shape("svg", {
        class: "timeline-drawing",
        tabindex: "0",
        role: "slider",
        "aria-label": "Memory over time",
        "aria-describedby": `${this.id}-help`,
      });
      this.readout = element("dl", { class: "timeline-readout" });
      const help =
        "Point at the curve, touch it, or move along it with the arrow keys; Page Up and Page Down go to the " +
        "next and previous method. To zoom in, drag over a part of it, turn the wheel with Ctrl " +
        "held, or press + and −; 0 shows all. mprof reads the RSS of each child process, " +
        "also where the curve is " + this.runs[0].metric + ", so that their sum may be more.";
      this.panel.append(
        this.controls(),
        this.drawing,
        this.readout,
        element("p", { class: "timeline-help", id: `${this.id}-help` }, help),
      );
      this.listen();
      this.show(0, this.end);
      new ResizeObserver(() => this.draw()).observe(this.panel);
    }

    controls() {
      const button = (text, label, action) => {
        const made = element("button", { type: "button", "aria-label": label }, text);
        made.addEventListener("click", action);
        return made;
      };
      const bar = element("div", { class: "timeline-controls" });
      if (this.runs.length > 1) {
        const metrics = element("fieldset", {}, element("legend", {}, "Memory as"));
        this.runs.forEach((run, i) => {
          const radio = element("input", { type: "radio", name: `${this.id}-metric` });
          radio.checked = i === 0;
          radio.addEventListener("change", () => this.change(run));
          metrics.append(element("label", {}, [radio, ` ${run.metric}`]));
        });
        bar.append(metrics);
      }
      this.select = element("select");
      this.list();
      this.select.addEventListener("change", () => this.showPhase(Number(this.select.value)));
      bar.append(
        element("label", {}, ["Show ", this.select]),
        element("span", { class: "timeline-zoom" }, [
          button("+", "Zoom in", () => this.zoom(0.5)),
          button("−", "Zoom out", () => this.zoom(2)),
          button("←", "Earlier", () => this.pan(-0.5)),
          button("→", "Later", () => this.pan(0.5)),
        ]),
      );
      return bar;
    }

    list() {
      const names = this.run.phases.map(({ name, peak }, i) =>
        element("option", { value: i }, `${i + 1} ${name}: ${peak}`),
      );
      this.select.replaceChildren(element("option", { value: -1 }, "all methods"), ...names);
    }

    // -- What is seen --------------------------------------------------------------------

    show(from, to) {
      const width = clamp(to - from, LEAST, this.end);
      this.from = clamp(from, 0, this.end - width);
      this.to = this.from + width;
      this.draw();
    }

    showPhase(number) {
      if (number < 0) {
        this.show(0, this.end);
        return;
      }
      const { began, ended } = this.run.phases[number];
      const around = 0.15 * (ended - began) + 0.1;
      const inside = this.run.times
        .map((time, i) => [time, i])
        .filter(([time]) => began <= time && time <= ended)
        .map(([, i]) => i);
      this.index = inside.length
        ? inside.reduce((best, i) => (this.run.mib[i] > this.run.mib[best] ? i : best))
        : nearest(this.run.times, ended);
      this.show(began - around, ended + around);
    }

    zoom(factor, at = this.run.times[this.index]) {
      const width = clamp((this.to - this.from) * factor, LEAST, this.end);
      const part = clamp((at - this.from) / (this.to - this.from), 0, 1);
      this.select.value = -1;
      this.show(at - part * width, at + (1 - part) * width);
    }

    pan(part) {
      const by = part * (this.to - this.from);
      this.show(this.from + by, this.to + by);
    }

    change(run) {
      const chosen = this.select.value;
      const part = this.run.times[this.index] / this.end;
      this.run = run;
      this.index = nearest(run.times, part * this.end);
      this.list();
      this.select.value = chosen;
      this.showPhase(Number(chosen));
    }

    read(index) {
      this.index = clamp(index, 0, this.run.times.length - 1);
      const time = this.run.times[this.index];
      if (time < this.from || time > this.to) {
        const half = (this.to - this.from) / 2;
        this.show(time - half, time + half);
      } else {
        this.mark();
      }
    }

    // -- Drawing -------------------------------------------------------------------------

    x(time) {
      return MARGIN.left + ((time - this.from) / (this.to - this.from)) * this.plot;
    }

    y(amount) {
      const high = HEIGHT - MARGIN.top - MARGIN.bottom;
      return HEIGHT - MARGIN.bottom - (amount / this.highest) * high;
    }

    timeAt(event) {
      const { left } = this.drawing.getBoundingClientRect();
      const part = (event.clientX - left - MARGIN.left) / this.plot;
      return this.from + clamp(part, 0, 1) * (this.to - this.from);
    }

    /** The outline of the samples from one time to another, down to zero. */
    area(from, to) {
      const { times, mib: amounts } = this.run;
      const at = (time) => {
        const after = times.findIndex((other) => other >= time);
        if (after <= 0) {
          return amounts[after < 0 ? amounts.length - 1 : 0];
        }
        const part = (time - times[after - 1]) / (times[after] - times[after - 1]);
        return amounts[after - 1] + part * (amounts[after] - amounts[after - 1]);
      };
      const [first, last] = [from, to].map((time) => clamp(time, times[0], times[times.length - 1]));
      const inside = times.map((time, i) => [time, amounts[i]]);
      const points = [
        [first, 0],
        [first, at(first)],
        ...inside.filter(([time]) => time > first && time < last),
        [last, at(last)],
        [last, 0],
      ];
      const placed = points.map(([time, amount]) => {
        return `${this.x(time).toFixed(1)},${this.y(amount).toFixed(1)}`;
      });
      return `M${placed.join("L")}Z`;
    }

    draw() {
      const width = this.panel.clientWidth;
      if (!width || this.from === undefined) {
        return;
      }
      this.plot = width - MARGIN.left - MARGIN.right;
      const { times, mib: amounts, phases } = this.run;
      const seen = amounts.filter((_, i) => times[i] >= this.from && times[i] <= this.to);
      this.highest = Math.max(1, ...(seen.length ? seen : amounts)) * 1.05;
      const bottom = this.y(0);

      const clip = shape("clipPath", { id: `${this.id}-clip` }, [
        shape("rect", { x: MARGIN.left, y: 0, width: this.plot, height: bottom }),
      ]);
      const curve = shape("g", { "clip-path": `url(#${this.id}-clip)` }, [
        shape("path", { d: this.area(-1, this.end + 1), class: "timeline-between" }),
      ]);
      const labels = shape("g", { class: "timeline-numbers" });
      const numbers = [];
      phases.forEach(({ began, ended, color, run }, i) => {
        const [left, right] = [this.x(began), this.x(ended)];
        if (right < MARGIN.left || left > width - MARGIN.right) {
          return;
        }
        curve.append(
          shape("rect", {
            ...{ x: left, y: MARGIN.top - 6, width: Math.max(right - left, 1) },
            ...{ height: bottom - MARGIN.top + 6, fill: color, class: "timeline-phase" },
          }),
        );
        if (run) {
          curve.append(shape("path", { d: this.area(began, ended), fill: color }));
        }
        const [low, high] = [MARGIN.left, width - MARGIN.right];
        const middle = (Math.max(left, low) + Math.min(right, high)) / 2;
        numbers.push({ text: `${i + 1}`, middle, half: (String(i + 1).length * LETTER) / 2 + 2 });
      });
      for (const { text, middle, at } of spread(numbers, MARGIN.left, width - MARGIN.right)) {
        labels.append(
          shape("text", { x: at, y: 14, "text-anchor": "middle" }, text),
          shape("path", { d: `M${at},18L${middle},${MARGIN.top - 6}` }),
        );
      }

      const axes = shape("g", { class: "timeline-axes" }, [
        shape("path", { d: `M${MARGIN.left},${MARGIN.top - 6}V${bottom}H${width - MARGIN.right}` }),
      ]);
      for (const amount of ticks(0, this.highest, 5)) {
        const at = { x: MARGIN.left - 8, y: this.y(amount) + 4, "text-anchor": "end" };
        axes.append(
          shape("path", { d: `M${MARGIN.left - 4},${this.y(amount)}h4` }),
          shape("text", at, whole.format(amount)),
        );
      }
      for (const time of ticks(this.from, this.to, clamp(this.plot / 80, 2, 10))) {
        const at = { x: this.x(time), y: bottom + 18, "text-anchor": "middle" };
        axes.append(
          shape("path", { d: `M${this.x(time)},${bottom}v4` }),
          shape("text", at, String(time)),
        );
      }
      const name = { x: MARGIN.left + this.plot / 2, y: HEIGHT - 4, "text-anchor": "middle" };
      axes.append(
        shape("text", name, "seconds"),
        shape("text", { x: 4, y: 20 }, "MiB"),
      );

      this.cursor = shape("g", { class: "timeline-cursor" }, [
        shape("path", { d: `M0,${MARGIN.top - 6}V${bottom}` }),
        shape("circle", { r: 5 }),
      ]);
      this.dragged = shape("rect", { class: "timeline-dragged", y: 0, height: bottom, width: 0 });
      this.drawing.setAttribute("width", width);
      this.drawing.setAttribute("height", HEIGHT);
      this.drawing.replaceChildren(clip, curve, axes, labels, this.dragged, this.cursor);
      this.mark();
    }

    /** Put the cursor to its sample, and say what is read there. */
    mark() {
      const { times, mib: amounts } = this.run;
      const x = this.x(times[this.index]);
      const outside = times[this.index] < this.from || times[this.index] > this.to;
      this.cursor.setAttribute("visibility", outside ? "hidden" : "visible");
      this.cursor.setAttribute("transform", `translate(${x.toFixed(1)},0)`);
      this.cursor.lastChild.setAttribute("cy", this.y(amounts[this.index]).toFixed(1));

      const { time, method, total, processes } = reading(this.run, this.index);
      const terms = {
        Time: time,
        Method: method,
        "All processes": total,
        [this.run.metric === "RSS" ? "Each" : "Child processes, RSS"]: processes.join(", "),
      };
      const rows = Object.entries(terms).map(([term, text]) =>
        element("div", {}, [element("dt", {}, term), element("dd", {}, text)]),
      );
      this.readout.replaceChildren(...rows);
      const values = {
        "aria-valuemin": 0,
        "aria-valuemax": this.end,
        "aria-valuenow": times[this.index],
        "aria-valuetext": `${time}, ${method}: ${total}; ${processes.join(", ")}`,
      };
      Object.entries(values).forEach(([key, value]) => this.drawing.setAttribute(key, value));
    }

    // -- Mouse, fingers and keys ---------------------------------------------------------

    listen() {
      let begin = null;
      const follow = (event) => this.read(nearest(this.run.times, this.timeAt(event)));
      this.drawing.addEventListener("pointerdown", (event) => {
        begin = event.pointerType === "mouse" && event.button === 0 ? this.timeAt(event) : null;
        if (begin !== null) {
          this.drawing.setPointerCapture(event.pointerId);
        }
        follow(event);
      });
      this.drawing.addEventListener("pointermove", (event) => {
        follow(event);
        if (begin !== null) {
          const [left, right] = [begin, this.timeAt(event)].sort((a, b) => a - b);
          this.dragged.setAttribute("x", this.x(left));
          this.dragged.setAttribute("width", this.x(right) - this.x(left));
        }
      });
      this.drawing.addEventListener("pointerup", (event) => {
        if (begin !== null) {
          const [left, right] = [begin, this.timeAt(event)].sort((a, b) => a - b);
          begin = null;
          this.dragged.setAttribute("width", 0);
          if (this.x(right) - this.x(left) > 8) {
            this.select.value = -1;
            this.show(left, right);
          }
        }
      });
      this.drawing.addEventListener("pointercancel", () => {
        begin = null;
        this.dragged.setAttribute("width", 0);
      });
      this.drawing.addEventListener(
        "wheel",
        (event) => {
          if (event.ctrlKey || event.metaKey) {
            event.preventDefault();
            this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event));
          }
        },
        { passive: false },
      );
      this.drawing.addEventListener("keydown", (event) => this.press(event));
    }

    press(event) {
      const step = event.shiftKey ? 10 : 1;
      const last = this.run.times.length - 1;
      const actions = {
        ArrowLeft: () => this.read(this.index - step),
        ArrowDown: () => this.read(this.index - step),
        ArrowRight: () => this.read(this.index + step),
        ArrowUp: () => this.read(this.index + step),
        PageUp: () => this.readPhase(1),
        PageDown: () => this.readPhase(-1),
        Home: () => this.read(0),
        End: () => this.read(last),
        "+": () => this.zoom(0.5),
        "=": () => this.zoom(0.5),
        "-": () => this.zoom(2),
        0: () => this.show(0, this.end),
        Escape: () => this.show(0, this.end),
      };
      const modified = event.ctrlKey || event.metaKey || event.altKey;
      if (!modified && actions[event.key]) {
        event.preventDefault();
        actions[event.key]();
      }
    }

    /** Go to the first sample of the next method, or of the one before. */
    readPhase(by) {
      const firsts = this.run.phases
        .map(({ began }) => this.run.times.findIndex((time) => time >= began))
        .filter((index) => (by > 0 ? index > this.index : index >= 0 && index < this.index));
      if (firsts.length) {
        this.read(by > 0 ? firsts[0] : firsts[firsts.length - 1]);
      }
    }
  }

  document.querySelectorAll(".timeline").forEach((place, i) => new Timeline(place, i));
})();
