// Requests to this service. Patients stand in bodies alone, never in an address.

export class Refused extends Error {
  constructor(status, code, sentence) {
    super(sentence);
    this.status = status;
    this.code = code;
  }
}

// Sends one request and returns the answer, if it is a yes.
export async function send(method, path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { "X-Qinjing": "1", ...headers },
      body,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch {
    throw new Refused(0, "network", "the service cannot be reached");
  }
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, content.code ?? "fault", content.error ?? answer.statusText);
  }
  return answer;
}

// The same with JSON both ways.
export async function ask(method, path, body) {
  const kind = body ? { "Content-Type": "application/json" } : {};
  const answer = await send(method, path, body ? JSON.stringify(body) : undefined, kind);
  return answer.json().catch(() => ({}));
}
