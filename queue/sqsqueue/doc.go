// Package sqsqueue is a [queue.Queue] in Amazon SQS. It is the only package that needs the
// AWS SDK.
//
// SQS delivers at least once, in any order, sometimes twice at the same time, and the
// ledger is what makes that harmless. So this package asks SQS for no more than it
// promises, and keeps no state that a crash could lose: a receipt holds all that is needed
// to settle its delivery, whichever process it comes back to.
//
// # Receiving
//
// The unit is the poll: one ReceiveMessage that waits up to twenty seconds in SQS. A poll
// is never canceled, because SQS may hand messages to whoever has hung up, and they would
// be lost to their visibility timeout. So a poll outlives its Receive: the next Receive
// takes it up, and what it brings while nobody receives is released at once. There are as
// many polls as free slots need, more while they come back full and fewer while they come
// back empty; an idle queue costs one. While they come back full, a Receive gathers what
// several of them bring.
//
// # Where it differs from other queues
//
//   - Receive hands out messages of all types: SQS cannot tell them apart. What a worker
//     does not know is kept aside, listed and acknowledged.
//   - Priorities are carried and have no influence on the order. Give what is urgent a
//     queue of its own.
//   - Time counts in whole seconds, rounded up: delays, visibility, releases.
//   - A delay is at most 15 minutes, and none is possible on a FIFO queue: [ErrDelay].
//     What must wait longer is sent through the Postgres queue, which every worker reads.
//   - Send of several messages is not atomic: after an error some of them may be sent.
//     Sending all of them again is right.
//   - What a call returns is not always the error of one try: the SDK tries calls again
//     that fail as a whole, and this package entries of a batch that SQS refuses by its
//     own fault. Nobody above could tell them apart.
//   - A message whose body is larger than the queue takes is split into several, which
//     are acknowledged each for itself.
//   - A message that is released again and again stays invisible for longer each time.
//   - A message can be held for 12 hours, however often it is extended.
//   - A released or lapsed message may go to the dead-letter queue, where one is set up:
//     give it a maxReceiveCount well above the attempts of the jobs (see [Diagnose]).
//
// # FIFO queues
//
// Of each message group one delivery is handed out at a time. The rest of what was
// received of the group follows as the one before it is acknowledged; when one is released
// or lost, the rest is released after it, in order, and the group begins anew from there. A
// worker releases what failed until it is done or has failed for good ([queue.FIFO]).
package sqsqueue
