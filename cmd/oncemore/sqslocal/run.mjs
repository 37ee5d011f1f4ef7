// Starts fauxqs on a free port of 127.0.0.1, without a log of requests, prints its address,
// and ends when standard input closes: it cannot outlive who started it.
import { startFauxqs } from "fauxqs";

const server = await startFauxqs({ port: Number(process.env.FAUXQS_PORT || 0), host: "127.0.0.1", logger: false });
console.log(server.address);
process.on("SIGINT", () => {}); // a Ctrl-C in a terminal is for who started it
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
