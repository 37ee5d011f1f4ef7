// fauxqs where ElasticMQ would listen, until the container is stopped.
import { startFauxqs } from "fauxqs";

await startFauxqs({ port: 9324, host: "0.0.0.0", logger: false });
process.on("SIGTERM", () => process.exit(0));
