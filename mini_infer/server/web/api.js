// Requests to this server, with the API key where it wants one.

import { askKey, currentKey } from "./key.js";

/** An answer that is an error, in the words of the server. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {string | null} code */
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * Fetch a path of this server, asking for a key as long as the server does not like the one there is.
 * @param {string} path relative to the page
 * @param {{body?: unknown, signal?: AbortSignal}} [options] with a body it is a POST
 * @returns {Promise<Response>} raises ApiError unless it is a success
 */
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = currentKey();
    /** @type {Record<string, string>} */
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? "GET" : "POST", headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (response.ok) return response;
    if (response.status !== 401 || !(await askKey(key !== null))) throw await problem(response);
  }
}

/** @param {Response} response */
async function problem(response) {
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, error.code);
  } catch {
    return new ApiError(response.status, `the server answered ${response.status}`, null);
  }
}
