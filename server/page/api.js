/** The server's API as far as the page needs it: JSON, server-sent events, and errors as sentences. */

import { plural } from "./numbers.js";

const BROKEN_OFF = "the server broke off in the middle of the answer";

/** An answer other than the one asked for, in the server's words. `status` is 0 when none came at all. */
export class ApiError extends Error {
  constructor(message, status, code = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** Bytes in, data of whole events out; a chunk may end anywhere, also inside a character. */
export class EventDecoder {
  #decoder = new TextDecoder();
  #rest = "";
  /** @type {string[]} */
  #data = [];

  /** @param {Uint8Array} bytes */
  feed(bytes) {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n");
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines.map((raw) => raw.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && this.#data.length > 0) {
        events.push(this.#data.join("\n"));
        this.#data = [];
      }
      // All else is a comment, which keeps the connection open, or a field that this server does not send.
    }
    return events;
  }
}

/** Paths are relative to the page, so that both may lie below a proxy's own path. */
export class Api {
  key = "";

  async get(path) {
    return (await this.#fetch(path, {})).json();
  }

  /** Chunks of an answer as they arrive. */
  async *stream(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    const response = await this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    const reader = response.body.getReader();
    const decoder = new EventDecoder();
    for (;;) {
      const { done, value } = await reader.read().catch(lost(BROKEN_OFF));
      if (done) throw new ApiError(BROKEN_OFF, 0);
      for (const data of decoder.feed(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 200, chunk.error.code);
        yield chunk;
      }
    }
  }

  async #fetch(path, options) {
    if (!/^[\x21-\x7e]*$/.test(this.key)) {
      throw new ApiError("the API key holds a character that a browser cannot send", 401, "invalid_api_key");
    }
    const headers = { ...options.headers, ...(this.key && { Authorization: `Bearer ${this.key}` }) };
    const response = await fetch(path, { ...options, headers }).catch(lost("the server cannot be reached"));
    if (response.ok) return response;
    const error = (await response.json().catch(() => null))?.error;
    const retryAfter = Number(response.headers.get("retry-after")) || null;
    const message = response.status === 401 && this.key ? "this server does not know this API key" : error?.message;
    throw new ApiError(message ?? `status ${response.status}`, response.status, error?.code, retryAfter);
  }
}

/** For promises of the network: an abort stays one, all else is a connection that is not there. */
function lost(/** @type {string} */ message) {
  return (error) => {
    throw error.name === "AbortError" ? error : new ApiError(message, 0);
  };
}

/** What went wrong, and what to do. */
export function sentence(/** @type {Error} */ error) {
  if (!(error instanceof ApiError)) return `The page itself failed: ${error.message}. Please report this.`;
  const said = error.message.replace(/\.$/, "");
  const Said = said.slice(0, 1).toUpperCase() + said.slice(1);
  if (error.status === 0) return `${Said}. See whether it still runs, then try again.`;
  if (error.status === 200) return `The answer broke off: ${said}.`;
  if (error.status === 401 && /this API key|a character/.test(said)) return `${Said}: enter one of its keys.`;
  if (error.status === 401) return "This server wants an API key: enter one of its keys under “API key”.";
  if (error.status === 429) {
    return `The server is busy, and its queue is full. Try again in ${plural(error.retryAfter ?? 1, "second")}.`;
  }
  return error.status === 503 ? `${Said}.` : `The server refused this: ${said}.`;
}
