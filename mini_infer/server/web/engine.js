// The engine view: listens to the feed while it is seen, and hands what comes to its parts.

import { Batch } from "./batch.js";
import { h } from "./dom.js";
import { listen } from "./feed.js";
import { duration, percent, short } from "./format.js";
import { Plot } from "./plot.js";
import { Pool } from "./pool.js";
import { Requests } from "./requests.js";

/** @typedef {import("./feed.js").Look} Look @typedef {import("./feed.js").View} View */

const RATE_SECONDS = 1; // that rates are averaged over

export class EngineView {
  /** @param {HTMLElement} root */
  constructor(root) {
    /** @type {AbortController | null} */
    this.listening = null;
    /** @type {View[]} */
    this.recent = [];
    this.plots = {
      rate: new Plot("Output", ["decode"], (value) => `${short(value)}/s`),
      requests: new Plot("Requests", ["decode", "queued"], short),
      step: new Plot("Step", ["prefill"], duration),
      first: new Plot("First token", ["reader"], duration),
      inter: new Plot("Between tokens", ["reader"], duration),
      kv: new Plot("KV cache", ["decode"], percent, 1),
    };
    this.last = { first: "–", inter: "–", step: "–" };
    this.batch = new Batch();
    this.pool = new Pool();
    this.requests = new Requests();
    this.state = h("p", { class: "state", "data-state": "off" }, "not connected");
    this.facts = h("p", { class: "muted facts" });
    root.replaceChildren(h("div", { class: "engine" },
      h("div", { class: "head" }, h("h2", {}, "What the engine is doing"), this.state, this.facts),
      h("div", { class: "cards" }, ...Object.values(this.plots).map((plot) => plot.root)),
      h("div", { class: "panels" }, h("div", { class: "left" }, this.batch.root, this.pool.root), this.requests.root)));
  }

  start() {
    if (this.listening !== null) return;
    this.listening = new AbortController();
    listen({
      engine: (engine) => {
        this.recent = [];
        this.facts.textContent = [engine.architecture, engine.device, engine.dtype, `${engine.max_num_seqs} slots`,
          `${engine.max_num_batched_tokens.toLocaleString("en")} tokens a step`,
          engine.pipeline_depth === 1 ? "one step at a time" : `${engine.pipeline_depth} steps in flight`].join(" · ");
      },
      view: (look) => this.show(look),
      ended: (ended) => this.requests.add(ended),
      lost: (error) => this.tell("lost", error.message),
    }, this.listening.signal);
  }

  stop() {
    this.listening?.abort();
    this.listening = null;
    this.recent = [];
    this.tell("off", "not watching");
  }

  /** @param {string} state @param {string} text */
  tell(state, text) {
    this.state.dataset.state = state;
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  /** @param {Look} look */
  show({ view, time_to_first_token: first, inter_token: inter }) {
    const { stats, time, steps } = view;
    this.tell("live", stats.running + stats.waiting > 0 ? "live" : "live, idle");
    while (this.recent.length > 1 && this.recent[0].time < time - RATE_SECONDS) this.recent.shift();
    const past = this.recent[0] ?? view;
    this.recent.push(view);
    const elapsed = time - past.time || 1;
    const per = (/** @type {"generated_tokens" | "prompt_tokens" | "steps"} */ name) => Math.max(0, (stats[name] - past.stats[name]) / elapsed);
    const mean = steps.length ? steps.reduce((sum, step) => sum + step.seconds, 0) / steps.length : null;
    if (first !== null) this.last.first = duration(first);
    if (inter !== null) this.last.inter = duration(inter);
    if (mean !== null) this.last.step = duration(mean);
    const { rate, requests, step, first: firstPlot, inter: interPlot, kv } = this.plots;
    const output = per("generated_tokens");
    rate.push(time, [output], `${short(Math.round(output))}/s`, `tokens; prompts ${short(Math.round(per("prompt_tokens")))}/s`);
    requests.push(time, [stats.running, stats.waiting], String(stats.running), `running, ${stats.waiting} waiting`);
    step.push(time, [mean], this.last.step, `${short(Math.round(per("steps")))} steps/s`);
    firstPlot.push(time, [first], this.last.first, "since arrival");
    interPlot.push(time, [inter], this.last.inter, "of one request");
    kv.push(time, [stats.used_blocks / stats.total_blocks], percent(stats.used_blocks / stats.total_blocks),
      `held, ${percent(stats.cached_blocks / stats.total_blocks)} cached`);
    this.batch.push(steps);
    this.pool.update(view);
    this.requests.update(view);
  }
}
