// The conversation: questions go out, answers come in piece by piece, and each gets its forms.
// What the page is for (gateway.page) stands in the data of the form.
// Everything that a model or a person said is put in as text, never as markup.
"use strict";

const conversation = document.getElementById("conversation");
const form = document.getElementById("ask");
const question = document.getElementById("question");
const stop = document.getElementById("stop");
const application = form.dataset;
let messages = [];
let asking = null;

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function addTurn(text) {
  const turn = document.getElementById("turn").content.firstElementChild.cloneNode(true);
  turn.querySelector(".question").textContent = text;
  conversation.append(turn);
  turn.scrollIntoView({ block: "end" });
  document.getElementById("hint").hidden = true;
  return turn;
}

function tell(notice, text) {
  notice.textContent = text;
  notice.hidden = !text;
}

function toMessage(text) {
  const content = application.template ? application.template.replaceAll("{text}", () => text) : text;
  return { role: "user", content };
}

async function ask(text) {
  const turn = addTurn(text);
  const shown = turn.querySelector(".text");
  turn.querySelector(".answer").setAttribute("aria-busy", "true");
  const asked = [...messages, toMessage(text)];
  setBusy(new AbortController());
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages: asked, task: application.task, stream: true }),
      signal: asking.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      shown.textContent += event.choices[0]?.delta.content ?? "";
      if (event.asyncflow?.written) finish(turn, event.asyncflow, shown.textContent);
    }
    if (!turn.classList.contains("whole")) throw new Error("the answer broke off");
    if ("conversation" in application) messages = [...asked, { role: "assistant", content: shown.textContent }];
  } catch (error) {
    turn.classList.add("broken");
    const why = error.name === "AbortError" ? "Stopped; it is not recorded as an answer" : error.message;
    tell(turn.querySelector(".answer .notice"), why + ".");
  } finally {
    turn.querySelector(".answer").removeAttribute("aria-busy");
    setBusy(null);
  }
}

function finish(turn, facts, text) {
  turn.classList.add("whole");
  turn.querySelector(".versions").textContent = facts.versions.map((version) => "v" + version).join(" → ");
  const name = turn.querySelector(".name");
  name.textContent = facts.rollout;
  name.href = "/feedback/" + facts.rollout;
  turn.querySelector(".meta").hidden = false;
  for (const field of turn.querySelectorAll("[name=rollout_id]")) field.value = facts.rollout;
  for (const field of turn.querySelectorAll("[name=receipt]")) {
    if (facts.receipt) field.value = facts.receipt;
    else field.remove();
  }
  for (const field of turn.querySelectorAll(".correction")) field.value = text;
  turn.querySelector(".judge").hidden = false;
  htmx.process(turn);
  turn.scrollIntoView({ block: "end" });
}

function setBusy(controller) {
  asking = controller;
  document.getElementById("send").disabled = controller !== null;
  stop.hidden = controller === null;
  if (controller === null) question.focus({ preventScroll: true });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || asking) return;
  question.value = "";
  ask(text);
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

stop.addEventListener("click", () => asking?.abort());

document.getElementById("anew").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  conversation.replaceChildren();
  document.getElementById("hint").hidden = false;
  question.focus();
});

document.getElementById("examples")?.addEventListener("click", (event) => {
  if (!event.target.classList.contains("example")) return;
  question.value = event.target.textContent;
  question.focus();
});

conversation.addEventListener("input", (event) => {
  if (event.target.classList.contains("score")) {
    event.target.form.querySelector("output").textContent = event.target.value;
  }
});

document.body.addEventListener("htmx:afterRequest", (event) => {
  const { elt, requestConfig, successful, xhr } = event.detail;
  if (requestConfig?.verb !== "post") return;
  const judge = elt.closest(".judge");
  tell(judge.querySelector(".notice"), successful ? "" : "Not taken: " + messageOf(xhr) + ".");
  if (!successful) return;
  showPressed(judge, requestConfig.parameters.kind, requestConfig.triggeringEvent?.submitter);
});

// A rating and a correction stand beside each other; a newer one replaces what was said of the same kind.
function showPressed(judge, kind, pressed) {
  for (const button of judge.querySelectorAll("[aria-pressed]")) {
    const isCorrection = button.classList.contains("choice");
    const concerned = kind === "retract" || isCorrection === (kind === "correction");
    if (concerned) button.setAttribute("aria-pressed", String(button === pressed));
  }
}

function messageOf(xhr) {
  try {
    return JSON.parse(xhr.responseText).error.message;
  } catch {
    return "the gateway cannot be reached";
  }
}
