// get.mjs HOST PORT CLOSED-PORT: the peer's address, what a closed port gives, and the page.
import http from "node:http";
import net from "node:net";
import { once } from "node:events";

const [host, port, closed] = process.argv.slice(2);

const socket = net.connect({ host, port: Number(port) });
await once(socket, "connect");
console.log("peer", socket.remoteAddress.replace("::ffff:", ""));
socket.destroy();

const refused = net.connect({ host, port: Number(closed) });
refused.on("connect", () => console.log("closed connected"));
const [error] = await once(refused, "error");
console.log("closed", error.code === "ECONNREFUSED" ? "refused" : error.code);

http.get(`http://${host}:${port}/`, (response) => response.pipe(process.stdout));
