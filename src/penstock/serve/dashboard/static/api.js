// Every request of the page goes through here, to its own origin. The key lives in this module's memory and nowhere else.

let key = "";
let asking = null;

function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const field = document.getElementById("key");
    if (why) document.getElementById("key-why").textContent = why;
    field.value = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        resolve(field.value.trim() !== "");
        field.value = "";
      },
      { once: true },
    );
    document.getElementById("key-form").addEventListener("submit", () => (key = field.value.trim()), { once: true });
    dialog.showModal();
  });
  return asking;
}

/** fetch, with the key; asks for one on 401 and tries again. Throws an Error with the server's own message. */
export async function call(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers };
    if (used) headers.authorization = `Bearer ${used}`;
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    if (answer.ok) return answer;
    const error = await failure(answer);
    if (answer.status !== 401) throw error;
    if (used !== key) continue; // another request has asked meanwhile
    if (!(await askForKey(used ? "The server does not know this key." : ""))) throw error;
  }
}

async function failure(answer) {
  let message = `the server answered ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // not JSON: a proxy in between; the status is all there is
  }
  const error = new Error(message);
  error.status = answer.status;
  return error;
}

/** The data of each server-sent event of an answer, parsed, until [DONE]. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const data = part.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
