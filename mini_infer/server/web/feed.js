// What the server tells of its engine, for as long as it is listened to. Shapes are those of mini_infer/protocol.py.

import { request } from "./api.js";
import { events } from "./sse.js";

/**
 * @typedef {{step_id: number, end: number, seconds: number, num_decodes: number, request_ids: number[], chunks: number[]}} Step
 * @typedef {[id: number, phase: string, arrival: number, prompt: number, computed: number, output: number, max: number,
 *   cached: number, blocks: number, preemptions: number]} LiveRequest
 * @typedef {{total_blocks: number, free_blocks: number, cached_blocks: number, used_blocks: number, block_size: number,
 *   running: number, waiting: number, preemptions: number, steps: number, prompt_tokens: number, cached_tokens: number,
 *   generated_tokens: number}} Stats
 * @typedef {{time: number, stats: Stats, steps: Step[], requests: LiveRequest[], owners: [id: number, blocks: number][], blocks_per_cell: number, cells: string}} View
 * @typedef {{view: View, time_to_first_token: number | null, inter_token: number | null}} Look
 * @typedef {{request_id: number, arrival: number, spans: [phase: string, end: number, tokens: number][],
 *   prompt_tokens: number, cached_tokens: number, output_tokens: number, preemptions: number, reason: string}} Timeline
 * @typedef {{timeline: Timeline, change: number, delivery: {reason: string, end: number, stalls: [number, number][]} | null}} Ended
 * @typedef {{device: string, dtype: string, architecture: string, max_model_len: number, max_num_seqs: number,
 *   max_num_batched_tokens: number, block_size: number, num_blocks: number, pipeline_depth: number, simulated: boolean}} Engine
 */

const PATH = "v1/engine/events";
const RETRY_SECONDS = [0.5, 1, 2, 5];

/**
 * Listen until `signal` says stop; a lost connection is made again.
 * @param {{engine: (engine: Engine) => void, view: (look: Look) => void, ended: (ended: Ended[]) => void,
 *   lost: (error: Error) => void}} on
 * @param {AbortSignal} signal
 */
export async function listen(on, signal) {
  for (let tries = 0; !signal.aborted; tries++) {
    try {
      for await (const { event, data } of events(await request(PATH, { signal }))) {
        if (signal.aborted) return;
        const value = JSON.parse(data);
        if (event === "engine") on.engine(value);
        else if (event === "view") on.view(value);
        else if (event === "ended") on.ended(value);
        else if (value.error) throw new Error(value.error.message);
        tries = 0;
      }
      throw new Error("The server ended the connection.");
    } catch (error) {
      if (signal.aborted) return;
      on.lost(/** @type {Error} */ (error));
    }
    await new Promise((resolve) => setTimeout(resolve, 1e3 * RETRY_SECONDS[Math.min(tries, RETRY_SECONDS.length - 1)]));
  }
}
