// The server's API: models, and answers as they come.

const KEY = "onnx-vlm key";

/** What went wrong, as a sentence; `status` is that of the response, 0 without one. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** The models of the server; calls back each second while it loads them. */
export async function models(onLoading) {
  for (;;) {
    try {
      return (await (await request("v1/models")).json()).data;
    } catch (error) {
      if (error.status !== 503) throw error;
      onLoading();
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

/** Ask, and yield the events of the stream: {text, grounding, finish, usage}, each with what is new. */
export async function* ask(model, messages, signal) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(sentence(chunk.error.message), response.status);
    const choice = chunk.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      grounding: choice?.delta?.onnx_vlm,
      finish: choice?.finish_reason,
      usage: chunk.usage,
    };
  }
  throw new ServerError("The server ended the answer too early.", 0);
}

/** The data of each server-sent event. */
async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Check that it is still running.", 0);
  }
  if (!response.ok) throw new ServerError(await explanation(response), response.status);
  return response;
}

/** Why a request was refused: in the server's words where it has some. */
async function explanation(response) {
  const message = await response.json().then((body) => body.error?.message, () => null);
  const text = sentence(message || `The server answered with status ${response.status}`);
  const seconds = response.headers.get("Retry-After");
  return seconds && response.status === 429 ? `${text} Try again in ${seconds} s.` : text;
}

function sentence(text) {
  const [first = "", ...others] = text.trim();
  return first.toUpperCase() + others.join("") + (/[.!?…]$/.test(text) ? "" : ".");
}
