// One answer of the model: what to send, and what comes back.

import { ApiError, request } from "./api.js";
import { events } from "./sse.js";

const PATH = "v1/chat/completions";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {{token: string, logprob: number, bytes: number[]}} Choice
 * @typedef {Choice & {top_logprobs: Choice[]}} TokenLogprob
 */

/** @param {Message[]} messages what came before @param {NonNullable<Message["sent"]>} sent */
function body(messages, { system, params }) {
  const said = messages.filter(({ content }) => content !== "").map(({ role, content }) => ({ role, content }));
  return { messages: system ? [{ role: "system", content: system }, ...said] : said, ...params };
}

/**
 * Fill `answer` as its text arrives; it holds what has come when this raises.
 * @param {Message[]} messages what came before
 * @param {Message} answer with `sent`
 * @param {() => void} onChange
 * @param {AbortSignal} signal
 */
export async function complete(messages, answer, onChange, signal) {
  const begin = performance.now();
  const figures = { tokens: 0, first: 0, seconds: 0, reason: "stopped" };
  answer.figures = figures;
  const response = await request(PATH, { signal, body: { ...body(messages, /** @type {any} */ (answer.sent)), stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true } } });
  for await (const { data } of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error.message, chunk.error.code);
    figures.seconds = (performance.now() - begin) / 1e3;
    if (chunk.usage) figures.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (figures.first === 0) figures.first = figures.seconds;
    answer.content += choice.delta.content ?? "";
    const reasoning = choice.delta.reasoning_content ?? choice.delta.reasoning;
    if (reasoning) answer.reasoning = (answer.reasoning ?? "") + reasoning;
    if (choice.finish_reason) figures.reason = choice.finish_reason;
    onChange();
  }
}

/**
 * The log-probabilities of an answer that is there already: the same request with the same seed gives the same tokens.
 * @param {Message[]} messages what came before
 * @param {Message} answer
 * @returns {Promise<TokenLogprob[]>}
 */
export async function replay(messages, answer) {
  const sent = /** @type {NonNullable<Message["sent"]>} */ (answer.sent);
  const params = { ...sent.params };
  if (answer.figures?.reason === "stopped") params.max_tokens = Math.max(1, answer.figures.tokens);
  const response = await request(PATH, { body: { ...body(messages, { ...sent, params }), logprobs: true, top_logprobs: 5 } });
  return (await response.json()).choices[0].logprobs.content;
}
