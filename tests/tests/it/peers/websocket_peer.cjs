// WebSockets by the package `ws` of npm. `server` prints its port; `client URL` prints what it saw as JSON.

const { WebSocket, WebSocketServer } = require("ws");

function serve() {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true, maxPayload: 0 });
  server.on("connection", (socket) => {
    socket.send("welcome");
    socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  server.on("listening", () => console.log(`listening on ${server.address().port}`));
  setTimeout(() => process.exit(0), 300_000).unref();
}

async function client(url) {
  const out = {};
  const socket = new WebSocket(url, { perMessageDeflate: true, maxPayload: 0 });
  const waiting = [];
  const come = [];
  socket.on("message", (data, isBinary) => {
    const message = isBinary ? data : data.toString();
    const next = waiting.shift();
    if (next) next(message);
    else come.push(message);
  });
  const closed = new Promise((resolve) => socket.on("close", resolve));
  const pong = new Promise((resolve) => socket.on("pong", (data) => resolve(data.toString())));
  const receive = () => (come.length ? Promise.resolve(come.shift()) : new Promise((resolve) => waiting.push(resolve)));
  out.first = await receive();
  socket.send("word");
  out.text = await receive();
  const large = Buffer.alloc(3_000_000);
  for (let at = 0; at < large.length; at++) large[at] = at % 251;
  socket.send(large);
  out.large = large.equals(await receive());
  for (let number = 0; number < 500; number++) socket.send(String(number));
  out.many = true;
  for (let number = 0; number < 500; number++) out.many &&= (await receive()) === String(number);
  socket.ping("are you there");
  out.pong = await pong;
  socket.close(1000, "done");
  out.closed = await closed;
  console.log(JSON.stringify(out));
}

const [role, url] = process.argv.slice(2);
if (role === "server") serve();
else client(url);
