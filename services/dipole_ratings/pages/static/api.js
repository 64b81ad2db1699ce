// The JSON API, and its refusals as errors. Addresses are relative: a proxy may serve the whole below a path prefix.

/** The server answered with a problem document. */
export class Problem extends Error {
  constructor(status, document, retryAfterS) {
    super(document.detail || document.title || `The server answered ${status}.`);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer came: no network, no server, or one that is not itself right now. What was asked may be asked again. */
export class Unreachable extends Error {
  constructor(cause, retryAfterS = null) {
    super("The server cannot be reached.", { cause });
    this.retryAfterS = retryAfterS;
  }
}

const PATIENCE_MS = 20_000;
const ASK_AGAIN = new Set([408, 425, 429, 500, 502, 503, 504]);

/** "/v1/rater/images/x" -> "v1/rater/images/x", which the browser resolves against the page. */
export const relative = (path) => path.replace(/^\//, "");

/** Resolves to {status, body, retryAfterS}; body is null without content. Throws Problem or Unreachable. */
export async function ask(method, path, { body, headers = {}, keepalive = false } = {}) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const kind = body === undefined ? {} : { "Content-Type": "application/json" };
  let response, text;
  try {
    response = await fetch(relative(path), {
      method, ...content, keepalive, headers: { Accept: "application/json", ...kind, ...headers },
      cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    text = await response.text();
  } catch (error) {
    throw new Unreachable(error);
  }
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch (error) {
    throw new Unreachable(error, retryAfterS); // a proxy's page, not our server
  }
  if (ASK_AGAIN.has(response.status)) throw new Unreachable(new Problem(response.status, document || {}), retryAfterS);
  if (!response.ok) throw new Problem(response.status, document || {}, retryAfterS);
  return { status: response.status, body: document, retryAfterS };
}

/** A key for an Idempotency-Key header. crypto.randomUUID is missing where a page comes over plain HTTP. */
export function makeKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
