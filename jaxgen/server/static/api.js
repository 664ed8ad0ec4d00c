// Requests to the server. The key is kept in this module alone.

let key = "";

export const $ = (id) => document.getElementById(id);

export function fail(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

// The response of a request; asks for the key as long as the server wants another one. Raises an Error with the server's sentence.
export async function request(path, body, signal) {
  for (;;) {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    if (key) headers.authorization = `Bearer ${key}`;
    const options = { method: body === undefined ? "GET" : "POST", headers, signal };
    const response = await fetch(path, { ...options, body: body === undefined ? undefined : JSON.stringify(body) });
    if (response.ok) return response;
    const message = await response.json().then((each) => each.error.message, () => `The server answered ${response.status}.`);
    if (response.status !== 401) throw new Error(message);
    key = await askKey();
    if (!key) throw new Error(message);
  }
}

export const post = async (path, body) => (await request(path, body)).json();

// Requests that fail together ask once.
let asking = null;
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.addEventListener("close", () => {
      asking = null;
      resolve($("key").value.replace(/[^\x20-\xff]/g, ""));
      $("key").value = "";
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Calls `read` with each event of a streamed completion, and waits for what it returns.
export async function stream(body, signal, read) {
  const response = await request("v1/completions", { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      await read(found.choices[0]);
      signal.throwIfAborted(); // what has come already is not shown
    }
  }
}

// Runs what a form or a button asks for, and shows its error.
export function guarded(action) {
  return async (event) => {
    event?.preventDefault?.();
    fail(null);
    try {
      await action(event);
    } catch (error) {
      if (error.name !== "AbortError") fail(error);
    }
  };
}
