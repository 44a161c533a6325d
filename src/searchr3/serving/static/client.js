// Asking this server: a request, the events of its answer, and what to tell people where there is none.

const PASSING = [0, 408, 429, 499, 500, 503];

/** What the server or the connection did not do: a line for people, and whether asking again may help. */
class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
    this.again = PASSING.includes(status);
  }
}

function problem(status, said, wait) {
  const lines = {
    0: "The server does not answer. Is it still running?",
    401: "This server wants an API key.",
    408: "The time for a request was over before the answer came. Ask for fewer hits or without thinking, or try again later.",
    413: "The question is too long for this server; shorten it.",
    429: `The server has too much to do. Try again in ${wait || 1} s.`,
    499: "The connection was lost in the middle of the answer. Try again.",
    503: `The server cannot answer now: ${said?.split(";")[0] || "it may be shutting down"}. Try again later.`,
  };
  return new Problem(status, lines[status] || `The server could not do this: ${said || `status ${status}`}.`);
}

/** Ask the server for a stream; its events go to `heard(name, data)`. Returns the answer, which is the last one. */
export async function request(path, body, key, signal, heard) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    throw signal.aborted ? error : problem(0);
  }
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw problem(response.status, said?.error?.message, response.headers.get("Retry-After"));
  }
  let last = null;
  try {
    for await (const [name, data] of events(response.body)) {
      if (name === "error") {
        throw problem({ timeout: 408, unavailable: 503 }[data.error.code] || 500, data.error.message);
      }
      heard(name, data);
      last = name === "reasoning" ? null : data;
    }
  } catch (error) {
    throw signal.aborted || error instanceof Problem ? error : problem(499);
  }
  if (!last) throw problem(499);
  return last;
}

/** Server-sent events: name and data of each. */
async function* events(stream) {
  const reader = stream.getReader(), decoder = new TextDecoder();
  for (let rest = "", part; !(part = await reader.read()).done; ) {
    const blocks = (rest + decoder.decode(part.value, { stream: true })).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]);
      const { event, data } = Object.fromEntries(lines);
      yield [event, JSON.parse(data)];
    }
  }
}
