// Requests to this service. Patients stand in bodies alone, never in an address.

export class Refused extends Error {
  constructor(status, code, sentence) {
    super(sentence);
    this.status = status;
    this.code = code;
  }
}

// Sends one request and returns the answer's content.
export async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { "X-Qinjing": "1", ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body ? JSON.stringify(body) : undefined,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch {
    throw new Refused(0, "network", "the service cannot be reached");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Refused(answer.status, content.code ?? "fault", content.error ?? answer.statusText);
  }
  return content;
}
