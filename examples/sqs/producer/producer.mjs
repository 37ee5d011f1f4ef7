// Asks for invitations, as a program that knows nothing of the workers: it reads lines
// "EVENT INVITEE", sends a message for each to the queue whose URL is its argument, ten in a
// request, and prints how many SQS has taken.
//
// It remembers nothing of what it has sent. When it fails, or dies, run it again with all
// the lines: asking twice does no harm.
import { SQSClient, SendMessageBatchCommand } from "@aws-sdk/client-sqs";
import { createInterface } from "node:readline";

const queue = process.argv[2];
const sqs = new SQSClient(); // region, credentials and endpoint are in the environment

// docs/wire-format.md: the job type, the entity as Entity() makes it of these arguments, and
// the arguments with the JSON names of the Go code.
const message = (event, invitee) => ({
  type: "send_event_email_to_invitee",
  entity: `${event}/${invitee}`,
  args: { event_id: event, invitee_id: invitee },
});

let sent = 0;

async function send(messages) {
  let entries = messages.map((m, i) => ({ Id: String(i), MessageBody: JSON.stringify(m) }));
  for (let attempt = 1; entries.length > 0; attempt++) {
    // The call may succeed although some of its messages did not.
    const { Failed = [] } = await sqs.send(new SendMessageBatchCommand({ QueueUrl: queue, Entries: entries }));
    if (Failed.length > 0 && attempt === 5) throw new Error(`SQS does not take ${Failed.length} messages: ${Failed[0].Message}`);
    sent += entries.length - Failed.length;
    entries = entries.filter((e) => Failed.some((f) => f.Id === e.Id));
  }
  console.log(sent);
}

let batch = [];
for await (const line of createInterface({ input: process.stdin })) {
  const [event, invitee] = line.split(" ").map(Number);
  batch.push(message(event, invitee));
  if (batch.length === 10) {
    await send(batch);
    batch = [];
  }
}
if (batch.length > 0) await send(batch);
