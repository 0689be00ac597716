// The room's page: shows what comes over the WebSocket, and sends what is written until the server has it.

const RETRY_FIRST = 500; // milliseconds, doubled at each attempt
const RETRY_MOST = 30_000;
const RETRY_RESTART = 1_000; // a server that restarts has said so: another one is there already
const SERVICE_RESTART = 1012; // close codes
const NO_ROOM = 4404;
const ANSWER_WITHIN = 10_000; // an acknowledgement or a pong that takes longer means a dead connection
const RESEND_AFTER = 2_000; // after "too_fast" and "unavailable"
const PASSING = new Set(["too_fast", "unavailable"]);
const HUES = 8;

const element = (id) => document.getElementById(id);
const room = element("room");
const log = element("log");
const list = element("messages");
const form = element("composer");
const field = element("text");
const mine = stored(`quintet-chat:mine:${room.dataset.slug}`, 200);
const outbox = stored(`quintet-chat:outbox:${room.dataset.slug}`, 500);

let socket = null;
let attempts = 0;
let timer = 0;
let answerTimer = 0;
let gone = false;
let following = true; // the log stays at its end until somebody scrolls up

/** A list kept for this tab, so that a reload loses nothing. Without storage it lives as long as the page. */
function stored(key, most) {
  let entries = [];
  try {
    entries = JSON.parse(sessionStorage.getItem(key)) ?? [];
  } catch { /* storage is off, or holds something else */ }
  const save = () => {
    entries = entries.slice(-most);
    try {
      sessionStorage.setItem(key, JSON.stringify(entries));
    } catch { /* full or off */ }
  };
  return {
    all: () => entries,
    add(entry) { entries.push(entry); save(); },
    remove(test) { entries = entries.filter((entry) => !test(entry)); save(); },
  };
}

/** A name for a message that no other has. (crypto.randomUUID is for HTTPS only.) */
function newRef() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ── Connection ───────────────────────────────────────────────────────────────────────────────────────────────────

function connect() {
  clearTimeout(timer);
  show("waiting", attempts ? "Reconnecting…" : "Connecting…");
  const address = new URL(room.dataset.socket, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = new WebSocket(address);
  socket = opened;
  expectAnswer();
  opened.onmessage = (event) => {
    if (socket === opened) receive(JSON.parse(event.data));
  };
  opened.onclose = (event) => {
    if (socket === opened) disconnected(event.code);
  };
}

function disconnected(code) {
  socket = null;
  answered();
  setOnline(null);
  if (code === NO_ROOM) {
    gone = true;
    show("gone", "This room is gone");
    return;
  }
  // A random part, so that not everybody comes back in the same moment.
  const most = code === SERVICE_RESTART && attempts === 0
    ? RETRY_RESTART
    : Math.min(RETRY_MOST, RETRY_FIRST * 2 ** attempts);
  const wait = most * (0.5 + Math.random() / 2);
  attempts += 1;
  show("waiting", navigator.onLine ? (wait < 2_000 ? "Reconnecting…" : `Offline, next try in ${Math.round(wait / 1000)} s`) : "You are offline");
  timer = setTimeout(connect, wait);
}

/** Takes the connection for dead unless something comes over it soon. */
function expectAnswer() {
  if (answerTimer) return;
  const expecting = socket;
  answerTimer = setTimeout(() => {
    disconnected(0);
    expecting.close();
  }, ANSWER_WITHIN);
}

function answered() {
  clearTimeout(answerTimer);
  answerTimer = 0;
}

function send(content) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  socket.send(JSON.stringify(content));
  expectAnswer();
}

/** After sleep or a change of network: ask whether anybody is there, or come back at once. */
function wake() {
  if (gone || document.visibilityState === "hidden") return;
  if (socket) {
    send({ type: "ping" });
  } else {
    attempts = 0;
    connect();
  }
}

function receive(content) {
  answered();
  if (outbox.all().length) expectAnswer();
  switch (content.type) {
    case "history":
      attempts = 0;
      show("open", "Connected");
      content.messages.forEach(addMessage);
      outbox.all().forEach(submit);
      break;
    case "message":
      addMessage(content);
      break;
    case "ack":
      acknowledged(content);
      break;
    case "presence":
      setOnline(content.online);
      break;
    case "error":
      refused(content);
      break;
  }
}

function show(state, words) {
  const shown = element("state");
  shown.dataset.state = state;
  if (shown.textContent !== words) shown.textContent = words;
}

// ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

function submit({ ref, text }) {
  send({ type: "message", ref, text });
}

function write(text) {
  const entry = { ref: newRef(), text };
  outbox.add(entry);
  addPending(entry);
  scrollToEnd();
  submit(entry);
}

/** The server has it: it becomes an ordinary message, unless it came as one already. */
function acknowledged({ ref, id }) {
  const entry = outbox.all().find((one) => one.ref === ref);
  outbox.remove((one) => one.ref === ref);
  pendingItem(ref)?.remove();
  mine.add(id);
  const shown = list.querySelector(`[data-id="${id}"]`);
  if (shown) shown.classList.add("mine");
  else if (entry) addMessage({ id, author: room.dataset.author, text: entry.text, sent_at: new Date().toISOString() });
}

function refused({ code, message, ref }) {
  const entry = outbox.all().find((one) => one.ref === ref);
  if (!entry) {
    showError(message);
  } else if (PASSING.has(code)) {
    setTimeout(() => submit(entry), RESEND_AFTER * (1 + Math.random()));
  } else {
    outbox.remove((one) => one.ref === ref);
    const item = pendingItem(ref);
    item?.classList.replace("waiting", "failed");
    const note = item?.querySelector(".message-note");
    if (note) note.textContent = `Not sent. ${message}`;
  }
}

function showError(words) {
  element("error").textContent = words;
  element("error").hidden = !words;
}

// ── The log ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** The same as the filter hue in templatetags/chat.py. */
function hue(name) {
  return [...name].reduce((sum, character) => sum + character.codePointAt(0), 0) % HUES;
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function avatar(name, extra = "") {
  const made = make("span", `avatar ${extra} hue-${hue(name)}`, [...name][0]?.toUpperCase());
  made.setAttribute("aria-hidden", "true");
  return made;
}

function messageItem(author, text, aside) {
  const item = make("li", "message");
  const head = make("p", "message-head");
  head.append(make("strong", "", author), " ", aside);
  const body = make("div", "message-body");
  body.append(head, make("p", "message-text", text));
  item.append(avatar(author), body);
  return item;
}

function clock(time) {
  const at = new Date(time.dateTime);
  const today = at.toDateString() === new Date().toDateString();
  time.textContent = at.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
  time.title = at.toLocaleString();
  return time;
}

function addMessage({ id, author, text, sent_at }) {
  if (list.querySelector(`[data-id="${id}"]`)) return;
  const time = make("time", "");
  time.dateTime = sent_at;
  const item = messageItem(author, text, clock(time));
  item.dataset.id = id;
  if (mine.all().includes(id)) item.classList.add("mine");
  // In the server's order, whatever came first.
  let before = list.lastElementChild;
  while (before && Number(before.dataset.id) > id) before = before.previousElementSibling;
  if (before) before.after(item);
  else list.prepend(item);
  element("empty").hidden = true;
  if (following) scrollToEnd();
  else element("jump").hidden = false;
}

function addPending({ ref, text }) {
  const item = messageItem(room.dataset.author, text, make("span", "message-note", "Sending…"));
  item.classList.add("mine", "waiting");
  item.dataset.ref = ref;
  element("pending").append(item);
  element("empty").hidden = true;
}

function pendingItem(ref) {
  return [...element("pending").children].find((item) => item.dataset.ref === ref);
}

function setOnline(names) {
  element("online").classList.toggle("unknown", names === null);
  if (names === null) return;
  element("online-count").textContent = names.length;
  element("online-names").replaceChildren(...names.map((name) => {
    const item = document.createElement("li");
    item.append(avatar(name, "avatar-small"), " ", make("span", "", name));
    return item;
  }));
}

function atEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  following = true;
  element("jump").hidden = true;
}

// ── The page ─────────────────────────────────────────────────────────────────────────────────────────────────────

form.addEventListener("submit", (event) => {
  event.preventDefault();
  showError("");
  if (!field.value.trim()) return;
  write(field.value.trim());
  field.value = "";
  field.focus();
});

field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

log.addEventListener("scroll", () => {
  following = atEnd();
  if (following) element("jump").hidden = true;
});
// A phone's keyboard makes the log smaller; its end stays in sight.
new ResizeObserver(() => {
  if (following) scrollToEnd();
}).observe(log);
element("jump").addEventListener("click", () => {
  scrollToEnd();
  field.focus();
});

for (const menu of document.querySelectorAll("details")) {
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || wide.matches && menu.id === "online") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

// Who is online stays open where there is room for it.
const wide = matchMedia("(min-width: 60rem)");
const arrange = () => { element("online").open = wide.matches; };
wide.addEventListener("change", arrange);
arrange();

window.addEventListener("online", wake);
window.addEventListener("focus", wake);
document.addEventListener("visibilitychange", wake);

element("keys").hidden = false;
document.querySelectorAll("time").forEach(clock);
list.querySelectorAll(".mine").forEach((item) => mine.add(Number(item.dataset.id)));
outbox.all().forEach(addPending);
scrollToEnd();
connect();
